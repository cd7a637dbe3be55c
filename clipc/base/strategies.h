// The guides' tables, as data: what rates, warmup and epochs suit which strategy, and the presets. `--help
// strategies` prints them, presets.h sets and compares with them.
#ifndef CLIPC_STRATEGIES_H
#define CLIPC_STRATEGIES_H

#include <stdint.h>
#include <stdio.h>

// name, peak rate from, to, warmup steps from, to, epochs from, to (0: and more)
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
    int64_t warmup_low, warmup_high, epochs_low, epochs_high;
} Strategy;

enum {
    STRATEGY_LONG_RUN = 10000,
    STRATEGY_WARMUP_LOW = 5,
    STRATEGY_WARMUP_HIGH = 10
}; // steps from which the table's warmup counts; below it percent

static inline const Strategy *strategy_of(StrategyKind kind) {
    static const Strategy strategies[STRATEGY_COUNT] = {
#define S(id, name, lr_low, lr_high, warmup_low, warmup_high, epochs_low, epochs_high) \
    {name, lr_low, lr_high, warmup_low, warmup_high, epochs_low, epochs_high},
        STRATEGIES(S)
#undef S
    };
    return &strategies[kind];
}

// A preset is written as params.txt is, an option and its value a line. Explicit options win over it.
typedef struct {
    const char *name, *use, *settings;
    const char *afterwards; // what to do with the result, or NULL
} Preset;

static inline const Preset *presets(int *count) {
    static const Preset list[] = {
        {"quick", "a small data set",
            "lr 1e-5\nbatch-size 64\nepochs 5\nwarmup 10%\nwd 0.1\ngrad-clip-norm "
            "1\nlock-image\nlock-image-unlocked-groups 2\naug-cfg scale=0.9,1.0\n",
            NULL},
        {"production", "a large data set",
            "lr 5e-5\nbatch-size 256\nepochs 10\nwarmup 5%\nwd 0.2\ngrad-clip-norm 1\neval-steps "
            "50%\nsave-steps 50%\n",
            "checkpoints/best.bin is the one to use"},
        {"conservative", "keep what the model can do already",
            "lr 5e-6\nbatch-size 128\nepochs 5\nwarmup 10%\nwd 0.1\ngrad-clip-norm 1\nimage-layer-decay "
            "0.75\ntext-layer-decay 0.75\nema-decay 0.999\n"
            "lock-image\nlock-image-unlocked-groups 4\nlock-text\nlock-text-unlocked-layers 4\n",
            "now blend it with the start by wise_ft, --alpha as validation asks"},
    };
    *count = (int)(sizeof list / sizeof *list);
    return list;
}

// 1e-5, as people write it
static inline void strategy_rate(char text[16], double rate) {
    int exponent = 0;
    for (; rate < 0.9995; rate *= 10) exponent--;
    snprintf(text, 16, "%.0fe%d", rate, exponent);
}

// `--help strategies`
static inline void strategies_print(FILE *f) {
    fputs("How to fine-tune (rates for AdamW at the peak of the schedule; a run outside of this is told so, "
          "not stopped)\n\n"
          "  strategy                peak rate      warmup steps   epochs         options\n",
        f);
    static const char *const options[STRATEGY_COUNT] = {"(none)",
        "--lock-image --lock-image-unlocked-groups N, the same for text", "--lock-image or --lock-text",
        "--model alone"};
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
    fputs("\nIn general: a rate 10 to 100 times below that of the pretraining, 5 to 20 epochs, a warmup of "
          "5% to 10% of the run (the step\n"
          "counts above suit runs of 10,000 steps and more). ViT-Base alone: 5e-6 to 1e-4. lr_find measures "
          "where the loss falls fastest.\n\n"
          "Presets (--preset NAME; options given beside it win)\n",
        f);
    int count;
    const Preset *list = presets(&count);
    for (int i = 0; i < count; i++) {
        fprintf(f, "  %-13s %s:\n               ", list[i].name, list[i].use);
        int x = 15;
        for (const char *p = list[i].settings; *p; p++) {
            if (p == list[i].settings || p[-1] == '\n') {
                int length = 0;
                while (p[length] != '\n') length++;
                if (x + 3 + length > 118) {
                    fputs("\n               ", f);
                    x = 15;
                }
                fputs(" --", f);
                x += 3;
            }
            if (*p != '\n') {
                fputc(*p, f);
                x++;
            }
        }
        fputs("\n", f);
        if (list[i].afterwards) fprintf(f, "                %s\n", list[i].afterwards);
    }
    fputs(
        "\nSchedules (--lr-scheduler)\n"
        "  linear           simple; may fall too fast early                  short runs\n"
        "  cosine           smooth; its length is fixed                      the default\n"
        "  exponential      adapts fast; --gamma to be tuned                 long runs\n"
        "  step             clear phases; jumps                              where there are natural phases\n"
        "  cosine-restarts  leaves local minima; more settings               hard tasks\n"
        "  stlr             explores early, converges long                   small sets; --cut-frac 0.1 "
        "--stlr-ratio 32\n"
        "  one-cycle        up, then down to next to nothing                 ViT: --lr 1e-4 --pct-start 0.3 "
        "--div-factor 25; text alone: 2e-5, 0.1, 10;\n"
        "                                                                    CNNs: similar domain 1e-3, 0.3, "
        "25; different domain 5e-4, 0.4, 25\n"
        "\nWhat the curves say (told after each evaluation), and what helps, in this order\n"
        "  training loss falls, validation loss rises   overfitting    lower rate, fewer epochs, lock more, "
        "more weight decay, more augmentation\n"
        "  both losses stay high, nothing gained        underfitting   higher rate, more epochs, unlock "
        "more, less weight decay\n"
        "  target good, general zero-shot poor          forgetting     lower rate, lock early layers, "
        "wise_ft, mix general data\n"
        "\nWorth watching in every run: the target set and a general set side by side (--zeroshot-data "
        "target=… --zeroshot-data general=…; the first\n"
        "is the target), checkpoints often enough to compare (--save-steps, --eval-steps).\n",
        f);
}

#endif
