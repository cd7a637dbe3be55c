// Which learning rate, warmup and number of epochs suit which way of fine-tuning: the table that `--help
// strategies` prints, the presets (--preset), and the note about a run whose settings lie outside the table.
#ifndef CLIPC_STRATEGIES_H
#define CLIPC_STRATEGIES_H

#include "clipc/base/options.h" // Options, option_find

// ---------------------------------------------------------------- the table

// name, peak rate from, to, warmup steps from, to, epochs from, to (0: no upper limit)
#define STRATEGIES(S)                                                  \
    S(FULL, "full fine-tuning", 1e-5, 1e-4, 1000, 5000, 5, 10)         \
    S(PARTIAL, "partial (last groups)", 5e-5, 5e-4, 1000, 3000, 5, 10) \
    S(ONE_TOWER, "one tower frozen", 1e-4, 1e-3, 1000, 5000, 10, 20)   \
    S(SCRATCH, "training from scratch", 1e-3, 5e-3, 10000, 10000, 32, 0)

#define S(id, name, lr_low, lr_high, warmup_low, warmup_high, epochs_low, epochs_high) STRATEGY_##id,
typedef enum { STRATEGIES(S) STRATEGY_COUNT } StrategyKind;
#undef S

typedef struct {
    const char *name;
    double lr_low, lr_high;
    int64_t warmup_low, warmup_high; // steps
    int64_t epochs_low, epochs_high; // epochs_high 0: no upper limit
} Strategy;

// The table's warmup is for runs of STRATEGY_LONG_RUN steps and more; in shorter ones the warmup is to be
// STRATEGY_WARMUP_LOW to STRATEGY_WARMUP_HIGH percent of the run.
enum { STRATEGY_LONG_RUN = 10000, STRATEGY_WARMUP_LOW = 5, STRATEGY_WARMUP_HIGH = 10 };

static inline const Strategy *strategy_of(StrategyKind kind) {
    static const Strategy strategies[STRATEGY_COUNT] = {
#define S(id, name, lr_low, lr_high, warmup_low, warmup_high, epochs_low, epochs_high) \
    {name, lr_low, lr_high, warmup_low, warmup_high, epochs_low, epochs_high},
        STRATEGIES(S)
#undef S
    };
    return &strategies[kind];
}

// ---------------------------------------------------------------- presets

// `settings` is written like params.txt, an option and its value on each line. Options on the command line
// win over it.
typedef struct {
    const char *name, *use, *settings;
    const char *afterwards; // the step to take after the run, or NULL
} Preset;

static inline const Preset *presets(int *count) {
    static const Preset list[] = {
        {"quick", "a small data set",
            "lr 1e-5\nbatch-size 64\nepochs 5\nwarmup 10%\nwd 0.1\ngrad-clip-norm 1\n"
            "lock-image\nlock-image-unlocked-groups 2\naug-cfg scale=0.9,1.0\n",
            NULL},
        {"production", "a large data set",
            "lr 5e-5\nbatch-size 256\nepochs 10\nwarmup 5%\nwd 0.2\ngrad-clip-norm 1\n"
            "eval-steps 50%\nsave-steps 50%\n",
            "checkpoints/best.bin is the one to use"},
        {"conservative", "keep what the model can do already",
            "lr 5e-6\nbatch-size 128\nepochs 5\nwarmup 10%\nwd 0.1\ngrad-clip-norm 1\n"
            "image-layer-decay 0.75\ntext-layer-decay 0.75\nema-decay 0.999\n"
            "lock-image\nlock-image-unlocked-groups 4\nlock-text\nlock-text-unlocked-layers 4\n",
            "average it with the model it started from: wise_ft, --alpha chosen on validation data"},
    };
    *count = (int)(sizeof list / sizeof *list);
    return list;
}

static inline const Preset *preset_find(const char *name) {
    int count;
    const Preset *list = presets(&count);
    for (int i = 0; name && i < count; i++)
        if (strcmp(list[i].name, name) == 0) return &list[i];
    return NULL;
}

// Sets the options that --preset stands for, unless the command line sets them. Schedules with a ramp of
// their own take no warmup from it.
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

// ---------------------------------------------------------------- a run compared with the table

// What the user gave, before a preset fills in the rest: only that is compared with the table. A rate that a
// range test measured is right whatever the table says.
typedef struct {
    bool lr, warmup, epochs;
} StrategyGiven;

static inline StrategyGiven strategy_given(const Options *o) {
    const StrategyGiven g = {options_was_set(o, lr) && o->lr != RATE_AUTO && !o->lr_measured,
        options_was_set(o, warmup), options_was_set(o, epochs) || options_was_set(o, steps)};
    return g;
}

static inline StrategyKind strategy_kind(const Options *o) {
    const bool frozen =
        (o->lock_image && !o->lock_image_unlocked_groups) || (o->lock_text && !o->lock_text_unlocked_layers);
    if (frozen) return STRATEGY_ONE_TOWER;
    if (!o->pretrained) return STRATEGY_SCRATCH;
    return o->lock_image || o->lock_text ? STRATEGY_PARTIAL : STRATEGY_FULL;
}

// The option that would lock more of the model; NULL when everything that can be locked is.
static inline const char *strategy_lock_more(const Options *o) {
    if (!o->lock_image) return "--lock-image";
    if (o->lock_image_unlocked_groups) return "fewer --lock-image-unlocked-groups";
    if (!o->lock_text) return "--lock-text";
    return o->lock_text_unlocked_layers ? "fewer --lock-text-unlocked-layers" : NULL;
}

// 1e-5, as people write it; a rate below 1
static inline void strategy_rate(char text[16], double rate) {
    int exponent = 0;
    for (; rate < 0.9995; rate *= 10) exponent--;
    snprintf(text, 16, "%.0fe%d", rate, exponent);
}

// Writes one line about the given settings that lie outside the table; false when none does. `lr` is the peak
// rate, `steps` and `warmup` are those of the run.
static inline bool strategy_note(char *text, size_t size, const Options *o, StrategyGiven given, double lr,
    int64_t steps, int64_t warmup, int64_t steps_per_epoch) {
    const Strategy *s = strategy_of(strategy_kind(o));
    const double epochs = steps_per_epoch ? (double)steps / (double)steps_per_epoch : 0;
    const double share = 100 * (double)warmup / (double)steps;
    char low[16], high[16];
    int n = snprintf(text, size, "for %s, the table of --help strategies recommends", s->name);
    const int head = n;
    strategy_rate(low, s->lr_low);
    strategy_rate(high, s->lr_high);
    if (given.lr && lr > 0 && (lr < 0.999 * s->lr_low || lr > 1.001 * s->lr_high))
        n += snprintf(text + n, size - (size_t)n,
            " a rate of %s to %s (here %g), unless lr_find measured it;", low, high, lr);
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
    if (n > head && (size_t)n <= size) text[n - 1] = 0; // the last semicolon
    return n > head;
}

// ---------------------------------------------------------------- --help strategies

// One row for each strategy.
static inline void strategies_print_table(FILE *f) {
    static const char *const options[STRATEGY_COUNT] = {"(none)",
        "--lock-image --lock-image-unlocked-groups N, the same for text", "--lock-image or --lock-text",
        "--model alone"};
    fputs("How to fine-tune. Rates are for AdamW, at the peak of the schedule. A run with other settings\n"
          "gets a note, and is not stopped.\n\n"
          "  strategy                peak rate      warmup steps   epochs         options\n",
        f);
    for (int i = 0; i < STRATEGY_COUNT; i++) {
        const Strategy *s = strategy_of((StrategyKind)i);
        char low[16], high[16], rates[40], warmup[48], epochs[48];
        strategy_rate(low, s->lr_low);
        strategy_rate(high, s->lr_high);
        snprintf(rates, sizeof rates, "%s to %s", low, high);
        snprintf(warmup, sizeof warmup, s->warmup_low < s->warmup_high ? "%lld-%lld" : "%lld",
            (long long)s->warmup_low, (long long)s->warmup_high);
        snprintf(epochs, sizeof epochs, s->epochs_high ? "%lld-%lld" : "%lld and more",
            (long long)s->epochs_low, (long long)s->epochs_high);
        fprintf(f, "  %-23s %-14s %-14s %-14s %s\n", s->name, rates, warmup, epochs, options[i]);
    }
    fputs(
        "\nIn general: a rate 10 to 100 times below that of the pretraining, 5 to 20 epochs, a warmup of\n"
        "5% to 10% of the run (the warmup steps above suit runs of 10,000 steps and more). ViT-Base alone:\n"
        "5e-6 to 1e-4. lr_find measures at which rate the loss falls fastest.\n",
        f);
}

// Each preset as the options that it stands for, wrapped.
static inline void presets_print(FILE *f) {
    enum { INDENT = 15, WIDTH = 118 };
    int count;
    const Preset *list = presets(&count);
    fputs("\nPresets (--preset NAME; options on the command line win)\n", f);
    for (int i = 0; i < count; i++) {
        int x = INDENT;
        fprintf(f, "  %-13s %s:\n%*s", list[i].name, list[i].use, INDENT, "");
        for (const char *line = list[i].settings; *line; line += strcspn(line, "\n") + 1) {
            const int length = (int)strcspn(line, "\n");
            if (x + 3 + length > WIDTH) {
                fprintf(f, "\n%*s", INDENT, "");
                x = INDENT;
            }
            fprintf(f, " --%.*s", length, line);
            x += 3 + length;
        }
        fputs("\n", f);
        if (list[i].afterwards) fprintf(f, "%*s then: %s\n", INDENT, "", list[i].afterwards);
    }
}

static inline void strategies_print(FILE *f) {
    strategies_print_table(f);
    presets_print(f);
    fputs(
        "\nSchedules (--lr-scheduler)\n"
        "  linear           simple; may fall too fast early on               short runs\n"
        "  cosine           smooth; its length is fixed in advance           the default\n"
        "  exponential      falls fast at first; --gamma needs tuning        long runs\n"
        "  step             clear phases; the rate jumps between them        training with natural phases\n"
        "  cosine-restarts  leaves local minima; more settings               hard tasks\n"
        "  stlr             short rise, long fall                            small sets; --cut-frac 0.1 "
        "--stlr-ratio 32\n"
        "  one-cycle        up, then down to almost zero                     ViT: --lr 1e-4 --pct-start 0.3 "
        "--div-factor 25; text alone: 2e-5, 0.1, 10;\n"
        "                                                                    CNNs: similar domain 1e-3, 0.3, "
        "25; different domain 5e-4, 0.4, 25\n"
        "\nWhat the curves say (an advice line after an evaluation), and what helps, best remedy first\n"
        "  training loss falls, validation loss rises   overfitting    lower rate, fewer epochs, lock more, "
        "more weight decay, more augmentation\n"
        "  both losses stay high, nothing gained        underfitting   higher rate, more epochs, unlock "
        "more, less weight decay\n"
        "  target good, general zero-shot poor          forgetting     lower rate, lock early layers, "
        "wise_ft, mix in general data\n"
        "\nWorth watching in every run: the target set and a general set side by side (--zeroshot-data "
        "target=… --zeroshot-data general=…; the first\n"
        "is the target), and checkpoints close enough together to compare (--save-steps, --eval-steps).\n",
        f);
}

// `--help strategies` anywhere on the command line prints all of this and ends the program. Call it before
// options_parse(), whose --help knows nothing of strategies.
static inline void strategies_help(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--help") != 0 && strcmp(argv[i], "-h") != 0) continue;
        if (strcmp(argv[i + 1], "strategies") != 0) return;
        strategies_print(stdout);
        exit(program_end(EXIT_SUCCESS));
    }
}

#endif
