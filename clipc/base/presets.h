// Presets set, and runs compared with the guides' table (strategies.h).
#ifndef CLIPC_PRESETS_H
#define CLIPC_PRESETS_H

#include "clipc/base/options.h"    // Options, option_find
#include "clipc/base/strategies.h" // Preset, Strategy

// What the user gave, before a preset fills in the rest: only that is compared with the table.
typedef struct {
    bool lr, warmup, epochs;
} StrategyGiven;

static inline StrategyGiven strategy_given(const Options *o) {
    const StrategyGiven g = {options_was_set(o, lr), options_was_set(o, warmup),
        options_was_set(o, epochs) || options_was_set(o, steps)};
    return g;
}

static inline const Preset *preset_find(const char *name) {
    int count;
    const Preset *list = presets(&count);
    for (int i = 0; name && i < count; i++)
        if (strcmp(list[i].name, name) == 0) return &list[i];
    return NULL;
}

// Sets what --preset stands for and the command line does not say. Schedules with a ramp of their own take no
// warmup from it.
static inline void preset_apply(Options *o) {
    const Preset *preset = preset_find(o->preset);
    if (!preset) return;
    char *text = o->preset_settings = strdup_check(preset->settings);
    char *rest = text;
    char *line, error[OPTION_ERROR_SIZE];
    const bool own_ramp = matches_any("stlr|one-cycle", o->lr_scheduler);
    while ((line = strsep(&rest, "\n")) && *line) {
        char *value = line + strcspn(line, " ");
        if (*value) *value++ = 0;
        const OptionRow *row = option_find(line);
        const size_t i = row ? (size_t)(row - option_rows()) : 0;
        if (!row || o->set[i] || (own_ramp && strcmp(line, "warmup") == 0) ||
            (options_was_set(o, steps) && strcmp(line, "epochs") == 0))
            continue;
        if (!option_store(o, row, value, error))
            die(EXIT_RUNTIME, "--preset %s: --%s %s: %s", preset->name, line, value, error);
        o->set[i] = true;
    }
}

static inline StrategyKind strategy_kind(const Options *o) {
    const bool frozen =
        (o->lock_image && !o->lock_image_unlocked_groups) || (o->lock_text && !o->lock_text_unlocked_layers);
    if (frozen) return STRATEGY_ONE_TOWER;
    if (!o->pretrained) return STRATEGY_SCRATCH;
    return o->lock_image || o->lock_text ? STRATEGY_PARTIAL : STRATEGY_FULL;
}

// The option that locks more of the model than these do; NULL when there is no more to lock.
static inline const char *strategy_lock_more(const Options *o) {
    if (!o->lock_image) return "--lock-image";
    if (o->lock_image_unlocked_groups) return "fewer --lock-image-unlocked-groups";
    if (!o->lock_text) return "--lock-text";
    return o->lock_text_unlocked_layers ? "fewer --lock-text-unlocked-layers" : NULL;
}

// What of the given settings lies outside the table, as one line; false when nothing does. `steps`, `warmup`:
// of the run.
static inline bool strategy_note(char *text, size_t size, const Options *o, StrategyGiven given, double lr,
    int64_t steps, int64_t warmup, int64_t steps_per_epoch) {
    const Strategy *s = strategy_of(strategy_kind(o));
    const double epochs = steps_per_epoch ? (double)steps / (double)steps_per_epoch : 0;
    const double share = 100 * (double)warmup / (double)steps;
    char low[16], high[16];
    int n = snprintf(text, size, "outside the guides' table: for %s they say", s->name);
    const int head = n;
    strategy_rate(low, s->lr_low);
    strategy_rate(high, s->lr_high);
    if (given.lr && lr > 0 && (lr < 0.999 * s->lr_low || lr > 1.001 * s->lr_high))
        n += snprintf(text + n, size - (size_t)n, " a rate of %s to %s (here %g);", low, high, lr);
    if (given.epochs && epochs > 0 &&
        (epochs < 0.95 * (double)s->epochs_low ||
            (s->epochs_high && epochs > 1.05 * (double)s->epochs_high))) {
        n += snprintf(text + n, size - (size_t)n,
            s->epochs_high ? " %lld to %lld epochs" : " %lld epochs or more", (long long)s->epochs_low,
            (long long)s->epochs_high);
        n += snprintf(text + n, size - (size_t)n, " (here %.3g);", epochs);
    }
    if (given.warmup && warmup > 0 && steps >= STRATEGY_LONG_RUN &&
        (warmup < s->warmup_low || warmup > s->warmup_high))
        n += snprintf(text + n, size - (size_t)n, " a warmup of %lld to %lld steps (here %lld);",
            (long long)s->warmup_low, (long long)s->warmup_high, (long long)warmup);
    if (given.warmup && warmup > 0 && steps < STRATEGY_LONG_RUN &&
        (share < STRATEGY_WARMUP_LOW - 1 || share > STRATEGY_WARMUP_HIGH + 1))
        n += snprintf(text + n, size - (size_t)n, " a warmup of %d%% to %d%% of the run (here %.3g%%);",
            STRATEGY_WARMUP_LOW, STRATEGY_WARMUP_HIGH, share);
    snprintf(text + n, size - (size_t)n, " see --help strategies");
    return n > head;
}

#endif
