// The learning-rate range test (Smith 2015): the learning rate grows from --min-lr to --max-lr during real
// training steps, with the model, the data and the options of the run to come. The loss shows which rates
// work. The weight file stays as it is.
//
//     ./lr_find --pretrained W.bin --train-data pairs.csv --batch-size 256 --lock-image
//
// How it works, in order:
//   1. main() opens model and data as train_clip does, so that the steps are those of the run to come.
//   2. range_test() repeats: train_step() of train_clip.c, its loss, the next rate. It stops early when the
//      running loss exceeds --stop-factor times its lowest value. With --repeats, each pass has the same
//      weights and another data order.
//   3. range_read() smooths the curves and finds rates of note; range_advise() picks one, with a reason.
//      Where nothing is learned at any rate, range_find() takes a closer look.
//   4. report() prints them and the train_clip commands with that rate, and writes lr_find.csv, lr_find.svg.
// All but the last is in clipc/train/lr_range.h.
#define PROGRAM_OPTIONS(X)                                                                           \
    X(PROGRAM, REAL, min_lr, "min-lr", "1e-7", "(0,inf)", "first rate of the ramp")                  \
    X(PROGRAM, REAL, max_lr, "max-lr", "10", "(0,inf)", "last rate of the ramp")                     \
    X(PROGRAM, INT, num_steps, "num-steps", "100", "[10,20000]", "steps of the ramp")                \
    X(PROGRAM, FLAG, linear, "linear", "", "",                                                       \
        "rates at equal distances (Smith 2015) instead of equal ratios")                             \
    X(PROGRAM, REAL, smoothing, "smoothing", "0.9", "[0,1)",                                         \
        "weight of the old value in the running loss, which decides when to stop")                   \
    X(PROGRAM, REAL, stop_factor, "stop-factor", "4", "(1,inf)",                                     \
        "stop where the running loss exceeds this many times its lowest value")                      \
    X(PROGRAM, INT, repeats, "repeats", "1", "[1,100]",                                              \
        "ramps with different data orders: their mean is read, their spread says how certain it is") \
    X(PROGRAM, CHOICE, group, "group", "(both towers)", "image text",                                \
        "train this tower with the other frozen: for a rate per tower")                              \
    X(PROGRAM, TEXT, output, "output", ".", "DIR", "where lr_find.csv and lr_find.svg go")
#define PROGRAM_USAGE                                                                                    \
    "Finds a learning rate for fine-tuning a CLIP model, by a range test. Takes train_clip's options:\n" \
    "give those of the planned run.\n\n"                                                                 \
    "  a rate          lr_find --pretrained ViT-B-32-openai.bin --train-data pairs.csv\n"                \
    "  with certainty  ... --repeats 3 --num-steps 200\n"                                                \
    "  per tower       ... --group image\n"
#define CLIP_WITHOUT_MAIN
#if defined(__CUDACC__) || defined(CLIPC_EMULATE)
#include "train_clip.cu"
#else
#include "train_clip.c"
#endif
#include "clipc/train/lr_range.h" // range_test

// ---------------------------------------------------------------- the commands to run next

// Does this argument begin an option that only lr_find has, or one that print_command() sets?
static bool left_out(const char *argument) {
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(argument + 2, "="), argument + 2);
    const OptionRow *row = option_find(name);
    return row && (row->group == GROUP_PROGRAM || row->group == GROUP_SCHEDULE ||
                      row == &option_rows()[OPTION_lr] || row == &option_rows()[OPTION_lr_measured]);
}

// train_clip from the folder of this program, with the options given here, the rate and a schedule.
static void print_command(char **argv, const Options *o, double rate, const char *schedule) {
    const size_t folder = strlen(argv[0]) - strlen(program_name());
    char *program = (char *)malloc_check(folder + sizeof "train_clip");
    sprintf(program, "%.*strain_clip", (int)folder, argv[0]);
    printf(" ");
    shell_word(stdout, program);
    free(program);
    bool skip = false;
    for (int i = 1; argv[i]; i++) {
        if (strncmp(argv[i], "--", 2) == 0) skip = left_out(argv[i]);
        if (!skip) shell_word(stdout, argv[i]);
    }
    if (o->group) printf(" --lock-%s", strcmp(o->group, "image") == 0 ? "text" : "image");
    printf(" --lr-measured --lr %g --lr-scheduler %s\n", rate, schedule);
}

// ---------------------------------------------------------------- the report

static void print_table(const RangeResult *r) {
    static const char *const meanings[] = {
#define X(name, text, meaning) meaning,
        RANGE_SUGGESTIONS(X)
#undef X
    };
    printf("\n%-12s %-10s %s\n", "suggestion", "rate", r->count > 1 ? "of each pass" : "");
    for (int k = 0; k < RANGE_SUGGESTION_COUNT; k++) {
        printf("%-12s %-10.3g ", range_suggestion_name(k), r->reading.rate[k]);
        for (int j = 0; r->count > 1 && j < r->count; j++) printf("%-10.3g ", r->readings[j].rate[k]);
        printf("%s\n", meanings[k]);
    }
}

static void print_commands(char **argv, const Options *o, double rate) {
    const bool own_ramp = options_was_set(o, warmup) && o->warmup.value > 0;
    char cosine[64];
    snprintf(cosine, sizeof cosine,
        own_ramp ? (o->warmup.percent ? "cosine --warmup %g%%" : "cosine --warmup %.0f") : "cosine",
        o->warmup.value);
    printf("\n");
    print_command(argv, o, rate, cosine);
    print_command(argv, o, rate, "one-cycle");
    print_command(argv, o, rate, "stlr");
    if (o->group) printf("  in a run of both towers: --lr-%s %g\n", o->group, rate);
}

// Writes the files, prints table, sentence and commands. Returns the exit code.
static int report(char **argv, const Options *o, const RangeResult *r) {
    char csv[PATH_SIZE], svg[PATH_SIZE], stop[160];
    path_format(csv, "%s/lr_find.csv", o->output);
    path_format(svg, "%s/lr_find.svg", o->output);
    range_write_csv(csv, r);
    const bool drawn = range_draw(svg, r);
    range_describe_stop(&r->mean, stop);
    printf("\nThe ramp %s.\n", stop);
    if (r->reading.learned) print_table(r);
    printf("\n%s.\n", r->advice.text);
    if (isfinite(r->advice.rate)) print_commands(argv, o, r->advice.rate);
    printf("\n");
    output("%s", csv);
    output("%s", drawn ? svg : "");
    return !drawn || !isfinite(r->advice.rate) ? EXIT_RUNTIME : EXIT_SUCCESS;
}

// ---------------------------------------------------------------- the program

static void check_options(const Options *o) {
    if (o->max_lr <= o->min_lr)
        die(EXIT_USAGE, "--max-lr %g: is not above --min-lr %g", o->max_lr, o->min_lr);
    if (o->resume)
        die(EXIT_USAGE, "--resume: the range test starts from weights alone; give --pretrained the .bin of "
                        "that checkpoint");
    if (o->eval_only || o->check_data || o->classify.count || o->print_schedule || o->schema)
        die(EXIT_USAGE,
            "--eval-only, --check-data, --classify, --print-schedule and --schema are options of train_clip; "
            "leave them out");
    if (o->group && (strcmp(o->group, "image") == 0 ? o->lock_image : o->lock_text))
        die(EXIT_USAGE, "--group %s: this tower is locked; leave out --lock-%s", o->group, o->group);
    if (options_was_set(o, lr_image) || options_was_set(o, lr_text))
        die(EXIT_USAGE,
            "--lr-image, --lr-text: the ramp sets the rate; find each with --group image and --group text");
    make_directories(o->output);
}

int main(int argc, char **argv) {
    Options o;
    TrainData data;
    Logger log;
    memset(&data, 0, sizeof data);
    program_begin();
    json_begin();
    strategies_help(argc, argv);
    options_read(&o, argc, argv);
    command_line_synthetic(&o);
    if (!o.resume) model_check_options(&o);
    options_end_refused(&o);
    check_options(&o);
    train_defaults(&o);
    logger_open(&log, NULL, false);
    Clip *clip = model_open(&o);
    model_lock(clip, &o);
    model_set_precision(clip, &o);
    if (o.group) clip_lock(clip, strcmp(o.group, "image") == 0 ? TEXT_TOWER : IMAGE_TOWER, 0);
    data_set_loading(&data, &o, clip);
    Dataset val; // --val-split keeps these samples out of the test, as out of the run
    data_open(&data, &o, &val);
    dataset_check(&data.train, NULL, 2);
    dataset_print_accounts(&data.train, &log);
    data_cache_images(&data, &o);
    model_start_training(clip, &o);
    print_model(&log, clip, &o);
    train_catch_signals();
    const RangeConfig config = {o.min_lr, o.max_lr, o.num_steps, o.linear, o.smoothing, o.stop_factor};
    const RangeTest test = {&o, clip, &data, &log, train_step};
    RangeResult result;
    const bool whole = range_find(&test, &config, (int)o.repeats, &result);
    int code = EXIT_SIGNAL + train_interrupted;
    if (whole) code = comm_rank() ? EXIT_SUCCESS : report(argv, &o, &result); // process 0 reports
    range_result_free(&result);
    if (o.val_split > 0) dataset_free(&val);
    data_free(&data);
    logger_close(&log);
    clip_free(clip);
    options_free(&o);
    return program_end(code);
}
