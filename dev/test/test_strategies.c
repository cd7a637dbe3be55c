// Presets, and the note about a run whose settings lie outside the table of --help strategies.
#include "clipc/base/strategies.h"

#include "dev/test/test.h"

// A command line of words apart by blanks.
static Options parsed(const char *line) {
    static char copies[8][256];
    static int next;
    char *copy = copies[next++ % 8], *argv[32] = {(char *)(uintptr_t) "train_clip"}, *rest = copy;
    int argc = 1;
    Options o;
    snprintf(copy, sizeof copies[0], "%s", line);
    for (char *word; (word = strsep(&rest, " "));)
        if (*word) argv[argc++] = word;
    options_parse(&o, argc, argv);
    return o;
}

static void test_presets_fill_in_what_the_command_line_leaves(void) {
    EXPECT(!preset_find("none") && !preset_find(NULL));
    int count;
    const Preset *list = presets(&count);
    for (int i = 0; i < count; i++) EXPECT(preset_find(list[i].name) == &list[i], "%s", list[i].name);

    Options o = parsed("--preset quick --lr 3e-4");
    preset_apply(&o);
    EXPECT(o.lr == 3e-4 && o.batch_size == 64 && o.epochs == 5 && o.wd == 0.1 && o.grad_clip_norm == 1);
    EXPECT(o.warmup.percent && o.warmup.value == 10 && o.lock_image && o.lock_image_unlocked_groups == 2);
    EXPECT(options_was_set(&o, epochs) && !options_was_set(&o, lock_text));
    options_free(&o);
    o = parsed("--preset conservative --lr-scheduler one-cycle --steps 50"); // a ramp and a length of its own
    preset_apply(&o);
    EXPECT(o.lr == 5e-6 && o.ema_decay == 0.999 && o.lock_text && o.lock_text_unlocked_layers == 4);
    EXPECT(!options_was_set(&o, warmup) && !options_was_set(&o, epochs));
    options_free(&o);
    o = parsed("--lr 3e-4");
    preset_apply(&o);
    EXPECT(!options_was_set(&o, batch_size));
    options_free(&o);
}

static void expect_note(const char *line, double lr, int64_t steps, int64_t warmup, const char *wanted) {
    enum { STEPS_PER_EPOCH = 100 };
    char text[512] = "";
    Options o = parsed(line);
    const bool noted =
        strategy_note(text, sizeof text, &o, strategy_given(&o), lr, steps, warmup, STEPS_PER_EPOCH);
    EXPECT(noted == (wanted != NULL), "%s: '%s'", line, text);
    if (noted && wanted) EXPECT_STRING(text, wanted);
    options_free(&o);
}

static void test_settings_outside_the_table_are_noted(void) {
#define HEAD(name) "for " name ", the table of --help strategies recommends"
    const char *const all = "--pretrained x.bin --lr 1e-3 --epochs 2 --warmup 0";
    expect_note("--pretrained x.bin", 1, 200, 100, NULL); // nothing was given
    expect_note("--pretrained x.bin --lr 1e-5", 1e-5, 200, 20, NULL);
    expect_note("--pretrained x.bin --lr 1e-4", 1e-4, 200, 20, NULL);
    expect_note(all, 1e-3, 200, 0,
        HEAD("full fine-tuning") " a rate of 1e-5 to 1e-4 (here 0.001), unless lr_find measured it; 5 to 10 "
                                 "epochs (here 2)");
    expect_note("--pretrained x.bin --epochs 5", 1, 500, 0, NULL);
    expect_note(
        "--pretrained x.bin --epochs 11", 1, 1100, 0, HEAD("full fine-tuning") " 5 to 10 epochs (here 11)");
    expect_note("--epochs 10", 1, 1000, 0, HEAD("training from scratch") " 32 epochs or more (here 10)");
    expect_note("--epochs 100", 1, 10000, 0, NULL);
    expect_note("--pretrained x.bin --lock-image --lr 1e-5", 1e-5, 200, 0,
        HEAD("one tower frozen") " a rate of 1e-4 to 1e-3 (here 1e-05), unless lr_find measured it");
    expect_note("--pretrained x.bin --lock-image --lock-image-unlocked-groups 2 --lr 1e-5", 1e-5, 200, 0,
        HEAD("partial (last groups)") " a rate of 5e-5 to 5e-4 (here 1e-05), unless lr_find measured it");
    expect_note("--pretrained x.bin --warmup 900", 1, 20000, 900,
        HEAD("full fine-tuning") " a warmup of 1000 to 5000 steps (here 900)");
    expect_note("--pretrained x.bin --warmup 1000", 1, 20000, 1000, NULL);
    expect_note("--pretrained x.bin --warmup 30", 1, 200, 30,
        HEAD("full fine-tuning") " a warmup of 5% to 10% of the run (here 15%)");
    expect_note("--pretrained x.bin --warmup 22", 1, 200, 22, NULL); // 11%: about the same
    expect_note("--pretrained x.bin --lr auto", 0.5, 200, 0, NULL);  // 0.5 is measured
    expect_note("--pretrained x.bin --lr 0.5 --lr-measured", 0.5, 200, 0, NULL);
    expect_note("--pretrained x.bin --lr 0", 0, 200, 0, NULL); // nothing is to be learned
#undef HEAD
}

static void test_lock_that_is_left_is_named(void) {
    static const char *const cases[][2] = {{"", "--lock-image"}, {"--lock-image", "--lock-text"},
        {"--lock-image --lock-image-unlocked-groups 2", "fewer --lock-image-unlocked-groups"},
        {"--lock-image --lock-text --lock-text-unlocked-layers 1", "fewer --lock-text-unlocked-layers"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Options o = parsed(cases[i][0]);
        EXPECT_STRING(strategy_lock_more(&o), cases[i][1]);
        options_free(&o);
    }
    Options o = parsed("--lock-image --lock-text");
    EXPECT(!strategy_lock_more(&o));
    options_free(&o);
}

int main(void) {
    RUN(test_presets_fill_in_what_the_command_line_leaves);
    RUN(test_settings_outside_the_table_are_noted);
    RUN(test_lock_that_is_left_is_named);
    return test_report();
}
