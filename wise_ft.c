// Weight ensembling: averages models that were fine-tuned from one another, entry by entry, and finds the
// best average.
//
//   ./wise_ft --zeroshot A.bin --finetuned B.bin --alpha 0.5 --save DIR  (1-α) A + α B (Wortsman et al. 2021)
//   ./wise_ft … --alpha 0:1:0.1 --eval NAME=PATH --eval NAME=PATH        what each α is worth
//   ./wise_ft … --eval NAME=PATH --eval NAME=PATH --select mean          the best α
//   ./wise_ft --models B.bin C.bin … --soup greedy --eval …              model soups (Wortsman et al. 2022)
//   ./wise_ft --help
//
// main() reads the options and opens the files; line_main() is for one model before and one after
// fine-tuning, many_main() for several fine-tuned ones. The arithmetic is in clipc/model/merge.h; evaluation,
// choice, tables and plot are in clipc/train/sweep.h.

#define PROGRAM_OPTIONS(X)                                                                                  \
    X(PROGRAM, TEXT, zeroshot, "zeroshot", "(none)", "FILE.bin", "the model before fine-tuning: alpha 0")   \
    X(PROGRAM, TEXT, finetuned, "finetuned", "(none)", "FILE.bin", "the model after it: alpha 1")           \
    X(PROGRAM, LIST, models, "models", "(none)", "FILE.bin...",                                             \
        "several fine-tuned models, for --soup, model-stock and task-arithmetic; EMA files are models too") \
    X(PROGRAM, CHOICE, method, "method", "wise-ft", "wise-ft lines model-stock task-arithmetic",            \
        "how models are merged; lines: alpha rises with depth")                                             \
    X(PROGRAM, CHOICE, soup, "soup", "(none)", "uniform greedy",                                            \
        "the mean of all --models, or of those that help the target on --eval")                             \
    X(PROGRAM, WORDS, alpha, "alpha", "(0.5; with --select 0:1:0.1)", "LIST",                               \
        "share of the fine-tuned model: 0.5, or 0,0.1,...,1, or 0:1:0.1")                                   \
    X(PROGRAM, REAL, alpha_image, "alpha-image", "(as --alpha)", "[0,1]", "alpha of the image tower")       \
    X(PROGRAM, REAL, alpha_text, "alpha-text", "(as --alpha)", "[0,1]", "alpha of the text tower")          \
    X(PROGRAM, REAL, first_block, "first-block", "0", "[0,1]",                                              \
        "lines: fraction of alpha at a tower's first block, rising linearly to 1 at its last")              \
    X(PROGRAM, WORDS, lambda, "lambda", "(1)", "LIST",                                                      \
        "task-arithmetic: factor on each model's update, may be negative; one for all, or one a model")     \
    X(PROGRAM, LIST, eval, "eval", "(none)", "[NAME=]PATH",                                                 \
        "labelled images as for train_clip's --zeroshot-data; may be repeated: target and shifted sets")    \
    X(PROGRAM, TEXT, target, "target", "(the first)", "NAME",                                               \
        "which set of --eval is the target; the others are shifted")                                        \
    X(PROGRAM, CHOICE, select, "select", "(none)", "mean target shift",                                     \
        "save the alpha that is best on the target, on the shifted sets, or by the mean of both")           \
    X(PROGRAM, INT, select_steps, "select-steps", "6", "[0,100]",                                           \
        "how many more alphas --select tries after those of --alpha")                                       \
    X(PROGRAM, FLAG, interpolate_positions, "interpolate-positions", "", "",                                \
        "resize position embeddings where image size or context length differ from the last model's")       \
    X(PROGRAM, TEXT, save, "save", "(no weights)", "DIR",                                                   \
        "folder for weights, tables and plot; without it, tables and plot go here")                         \
    X(PROGRAM, TEXT, format, "format", "bin", "NAME",                                                       \
        "also write the saved files in this format, by dev/convert.py, e.g. open_clip")
#define PROGRAM_GROUPS GROUP_BIT(PROGRAM)
#define PROGRAM_ALSO                                                                                    \
    "csv-img-key|csv-label-key|csv-separator|image-key|max-image-pixels|exif-rotate|workers|precision|" \
    "classnames|templates|eval-only"
#define PROGRAM_USAGE                                                                                       \
    "Averages the weights of models that were fine-tuned from one another, and finds the best average.\n\n" \
    "  average        wise_ft --zeroshot A.bin --finetuned B.bin --alpha 0.5 --save DIR\n"                  \
    "  sweep          ... --alpha 0:1:0.1 --eval photo=DIR --eval sketch=DIR --classnames names.txt\n"      \
    "  choose         ... --eval photo=DIR --eval sketch=DIR --select mean --save DIR\n"                    \
    "  soup           wise_ft --models B.bin C.bin D.bin --soup greedy --eval photo=DIR --save DIR\n"       \
    "  model stock    wise_ft --zeroshot A.bin --models B.bin C.bin --method model-stock --save DIR\n"

#define CLIP_WITHOUT_MAIN // the model without its main()
#if defined(__CUDACC__) || defined(CLIPC_EMULATE)
#include "train_clip.cu"
#else
#include "train_clip.c"
#endif

#include "clipc/model/merge.h" // merge_save, merge_load
#include "clipc/train/setup.h" // data_set_loading, dataset_config_from
#include "clipc/train/sweep.h" // sweep_measure, sweep_write

typedef struct {
    Options *o;
    Clip *clip;     // takes the weights that are measured; NULL without --eval
    TrainData data; // tokenizer and loading of the evaluation
    Evaluation evaluation;
    Logger log;
    MergeFile *base, **members; // before fine-tuning, or NULL; (count) fine-tuned
    int count;
    double *alphas; // (alpha_count) of --alpha, ascending
    int alpha_count;
    Sweep sweep;
    bool tower_shared[2]; // [tower] every model of the sweep has the same weights there: it runs once
    int64_t version[2];   // [tower] how often it was loaded
    SweepPoint *points;   // (point_count) of the models measured so far
    size_t point_count, point_capacity;
} WiseFt;

// ---------------------------------------------------------------- options

// Adds a number to the sorted list of alphas, rounded to twelve digits: the third step of 0:1:0.1 is 0.3, not
// 0.30000000000000004.
static void alpha_add(WiseFt *w, double alpha) {
    enum { MOST = 1001 };
    char text[32];
    snprintf(text, sizeof text, "%.12g", alpha);
    alpha = strtod(text, NULL);
    int at = w->alpha_count;
    while (at > 0 && w->alphas[at - 1] >= alpha) at--;
    if (at < w->alpha_count && w->alphas[at] == alpha) return;
    if (w->alpha_count == MOST) die(EXIT_USAGE, "--alpha: more than %d values", MOST);
    w->alphas = (double *)realloc_check(w->alphas, ((size_t)w->alpha_count + 1) * sizeof *w->alphas);
    memmove(w->alphas + at + 1, w->alphas + at, (size_t)(w->alpha_count++ - at) * sizeof *w->alphas);
    w->alphas[at] = alpha;
}

static double alpha_number(const char *text) {
    double x;
    if (!parse_number(text, &x))
        die(EXIT_USAGE, "--alpha %s: is not a number; give 0 to 1, a list 0,0.1,...,1 or a range 0:1:0.1",
            text);
    if (x < 0 || x > 1) die(EXIT_USAGE, "--alpha %s: is out of range; give 0 to 1", text);
    return x;
}

static void alpha_add_range(WiseFt *w, double from, double to, double step, const char *text) {
    if (!(step > 0) || to < from)
        die(EXIT_USAGE, "--alpha %s: does not rise; give FROM:TO:STEP, or FROM,NEXT,...,TO", text);
    if ((to - from) / step > 1e4) die(EXIT_USAGE, "--alpha %s: has too many steps", text);
    for (int i = 0; from + i * step <= to + 1e-9 * step; i++) alpha_add(w, fmin(from + i * step, to));
}

// Parses --alpha: numbers separated by commas or blanks, FROM:TO:STEP, or FROM,NEXT,...,TO.
static void alphas_parse(WiseFt *w, const char *text) {
    char *copy = strdup_check(text), *rest = copy, *word;
    double last[2] = {NAN, NAN};
    bool fill = false;
    while ((word = strsep(&rest, ", "))) {
        char *to, *step;
        if (!*word) continue;
        if (strcmp(word, "...") == 0 || strcmp(word, "…") == 0) {
            fill = true;
        } else if ((to = strchr(word, ':')) && (step = strchr(to + 1, ':'))) {
            double stride;
            *to++ = 0;
            *step++ = 0;
            if (!parse_number(step, &stride)) die(EXIT_USAGE, "--alpha %s: %s is not a number", text, step);
            alpha_add_range(w, alpha_number(word), alpha_number(to), stride, text);
        } else {
            const double x = alpha_number(word);
            if (fill) alpha_add_range(w, last[1], x, last[1] - last[0], text);
            alpha_add(w, x);
            last[0] = last[1];
            last[1] = x;
            fill = false;
        }
    }
    if (fill || !w->alpha_count)
        die(EXIT_USAGE, "--alpha %s: give 0 to 1, a list 0,0.1,...,1 or a range 0:1:0.1", text);
    free(copy);
}

// Parses --lambda: one factor for each of `count` members; free() it.
static double *lambdas_parse(const char *text, int count) {
    double *lambda = (double *)malloc_check((size_t)count * sizeof *lambda);
    char *copy = strdup_check(text ? text : "1"), *rest = copy, *word;
    int given = 0;
    while ((word = strsep(&rest, ", "))) {
        double x;
        if (!*word) continue;
        if (!parse_number(word, &x)) die(EXIT_USAGE, "--lambda %s: %s is not a number", text, word);
        if (given < count) lambda[given] = x;
        given++;
    }
    if (given != 1 && given != count)
        die(EXIT_USAGE, "--lambda %s: %d numbers for %d models; give one for all, or one a model",
            text ? text : "", given, count);
    for (int k = 1; given == 1 && k < count; k++) lambda[k] = lambda[0];
    free(copy);
    return lambda;
}

static bool is_method(const Options *o, const char *name) { return !o->soup && strcmp(o->method, name) == 0; }

// WiSE-FT and LiNeS: one model before fine-tuning, one after, and the line between them.
static bool is_line(const Options *o) { return is_method(o, "wise-ft") || is_method(o, "lines"); }

// Ends the program where options contradict each other or something is missing.
static void options_check(const Options *o) {
    const bool line = is_line(o), sets = o->eval.count;
    if (o->soup && options_was_set(o, method))
        die(EXIT_USAGE, "--soup and --method are two ways to average; give one of them");
    if (line && (!o->zeroshot || !o->finetuned))
        die(EXIT_USAGE, "which models? give --zeroshot A.bin --finetuned B.bin, or --models with --soup or "
                        "--method (see --help)");
    if (line && o->models.count)
        die(EXIT_USAGE,
            "--models: %s takes one model after fine-tuning, --finetuned; for several use --soup, or "
            "--method model-stock",
            o->method);
    if (!line && o->finetuned) die(EXIT_USAGE, "--finetuned: name all fine-tuned models with --models here");
    if (!line && o->models.count < (is_method(o, "task-arithmetic") ? 1 : 2))
        die(EXIT_USAGE, "--models: too few; name at least %d files", is_method(o, "task-arithmetic") ? 1 : 2);
    if (o->soup && o->zeroshot)
        die(EXIT_USAGE,
            "--soup averages --models; name the zero-shot model among them, or leave --zeroshot out");
    if (!line && !o->soup && !o->zeroshot)
        die(EXIT_USAGE, "--method %s: give the model before fine-tuning with --zeroshot", o->method);
    if (!line && (o->alpha || !isnan(o->alpha_image) || !isnan(o->alpha_text)))
        die(EXIT_USAGE, "--alpha: is for --zeroshot and --finetuned; leave it out");
    if (o->lambda && !is_method(o, "task-arithmetic"))
        die(EXIT_USAGE, "--lambda: is for --method task-arithmetic; leave it out");
    if (options_was_set(o, first_block) && !is_method(o, "lines"))
        die(EXIT_USAGE, "--first-block: is for --method lines; leave it out");
    if (o->select && !sets)
        die(EXIT_USAGE, "--select: nothing to choose by; give a validation set with --eval NAME=PATH");
    if (o->select && !line)
        die(EXIT_USAGE, "--select: chooses an alpha between --zeroshot and --finetuned; leave it out");
    if (o->soup && strcmp(o->soup, "greedy") == 0 && !sets)
        die(EXIT_USAGE, "--soup greedy: nothing to choose by; give a validation set with --eval NAME=PATH");
    if (o->eval_only && !sets) die(EXIT_USAGE, "--eval-only: nothing to evaluate on; give --eval NAME=PATH");
    if (o->eval_only && o->save)
        die(EXIT_USAGE, "--eval-only saves no weights; leave out --save, or --eval-only");
    if (!o->save && !sets)
        die(EXIT_USAGE,
            "nothing to do; give --save DIR to write weights, or --eval NAME=PATH to measure them");
    if (o->target && !sets)
        die(EXIT_USAGE, "--target %s: there are no sets; give --eval NAME=PATH", o->target);
    if (options_was_set(o, format) && !o->save)
        die(EXIT_USAGE, "--format %s: no weights are saved; give --save DIR", o->format);
}

// ---------------------------------------------------------------- files and evaluation

// Opens all weight files and checks that they can be merged.
static void files_open(WiseFt *w) {
    const Options *o = w->o;
    const char *one[1] = {o->finetuned}, *const *paths = is_line(o) ? one : o->models.items;
    w->count = is_line(o) ? 1 : (int)o->models.count;
    w->members = (MergeFile **)malloc_check((size_t)w->count * sizeof *w->members);
    if (o->zeroshot) w->base = merge_file_open(o->zeroshot);
    for (int k = 0; k < w->count; k++) {
        w->members[k] = merge_file_open(paths[k]);
        for (int j = w->base ? -1 : 0; j < k; j++) {
            const MergeFile *other = j < 0 ? w->base : w->members[j];
            if (merge_same_file(&other->st, &w->members[k]->st))
                die(EXIT_USAGE, "%s and %s are the same file; name two models", other->w.path, paths[k]);
        }
    }
    MergeFile *last = w->members[w->count - 1];
    if (w->base) merge_match(w->base, last, o->interpolate_positions);
    for (int k = 0; k < w->count - 1; k++) merge_match(w->members[k], last, o->interpolate_positions);
}

static MergeAlpha alpha_at(const Options *o, double alpha) {
    const MergeAlpha a = {alpha, {o->alpha_image, o->alpha_text}, is_method(o, "lines"), o->first_block};
    return a;
}

// Finds out which towers are the same for all models of the sweep; there has to be one that is not.
static void find_shared_towers(WiseFt *w) {
    static const char *const names[2] = {"image", "text"};
    const Options *o = w->o;
    MergeFile **files = (MergeFile **)malloc_check(((size_t)w->count + 1) * sizeof *files);
    memcpy(files, &w->base, sizeof w->base);
    memcpy(files + (w->base ? 1 : 0), w->members, (size_t)w->count * sizeof *files);
    merge_equal_towers(files, w->count + (w->base ? 1 : 0), w->tower_shared);
    free(files);
    if (w->tower_shared[0] && w->tower_shared[1])
        die(EXIT_USAGE, "%s and the others hold the same weights; there is nothing between them",
            w->members[0]->w.path);
    for (int tower = 0; tower < 2; tower++) {
        const bool fixed = is_line(o) && !isnan(tower == IMAGE_TOWER ? o->alpha_image : o->alpha_text);
        if (w->tower_shared[tower])
            logger_print(&w->log, "shared       the %s tower is the same in all files and runs only once",
                names[tower]);
        w->tower_shared[tower] |= fixed;
    }
}

// Opens the sets of --eval, and a model to measure on them.
static void evaluation_open(WiseFt *w) {
    Options *o = w->o;
    train_defaults(o);
    w->clip = clip_load(w->members[w->count - 1]->w.path);
    model_set_precision(w->clip, o);
    data_set_loading(&w->data, o, w->clip);
    w->evaluation = evaluation_from(o, w->clip, &w->data.loading, &w->log);
    const DatasetConfig keys = dataset_config_from(o);
    sweep_open(&w->sweep, &w->evaluation, o->eval.items, o->eval.count, o->target, o->classnames,
        o->templates, &keys);
    if (o->select && strcmp(o->select, "shift") == 0 && w->sweep.count < 2)
        die(EXIT_USAGE, "--select shift: only one set; give the shifted ones with further --eval NAME=PATH");
    find_shared_towers(w);
    logger_print(&w->log, "images       %s",
        w->sweep.keeps_pixels ? "are decoded once and kept in memory"
                              : "do not fit into memory; they are decoded again for each model");
    train_catch_signals();
}

static int compare_points(const void *a, const void *b) {
    return compare_doubles(&((const SweepPoint *)a)->alpha, &((const SweepPoint *)b)->alpha);
}

// Measures the result of `m` on all sets. Returns its point, valid until the next call; NULL after Ctrl-C.
static const SweepPoint *measure(WiseFt *w, const Merge *m, const char *label, double alpha) {
    bool wanted[2];
    SweepPoint p;
    for (int tower = 0; tower < 2; tower++) {
        wanted[tower] = !w->version[tower] || !w->tower_shared[tower];
        w->version[tower] += wanted[tower];
    }
    merge_load(m, w->clip, wanted);
    if (!sweep_measure(&w->sweep, w->version, label, alpha, &p)) return NULL;
    sweep_print_point(&w->sweep, &p);
    list_grow((void **)&w->points, &w->point_capacity, w->point_count + 1, sizeof *w->points);
    w->points[w->point_count++] = p;
    return &w->points[w->point_count - 1];
}

// ---------------------------------------------------------------- saving

// Writes the form `format` of a saved file next to it, by dev/convert.py.
static void convert(const char *bin, const char *format) {
    char converter[PATH_SIZE], out[PATH_SIZE];
    const char *python = getenv("PYTHON") && *getenv("PYTHON") ? getenv("PYTHON") : "python3";
    path_format(out, "%.*s-%s", (int)strlen(bin) - 4, bin, format);
    if (!script_find(converter, "convert.py"))
        die(EXIT_USAGE, "--format %s: dev/convert.py was not found; %s is written", format, bin);
    fflush(stdout);
    const char *const arguments[] = {python, converter, bin, "-o", out, "--format", format, NULL};
    Process process;
    int status;
    const int error = process_start(&process, arguments, -1, false);
    if (error)
        die(EXIT_RUNTIME, "--format %s: needs %s, which cannot be run (%s); set PYTHON; %s is written",
            format, python, strerror(error), bin);
    process_wait(&process, true, &status);
    if (status) die(EXIT_RUNTIME, "--format %s: dev/convert.py failed; %s is written", format, bin);
}

// Writes the result of `m` to DIR/NAME.bin, and in the --format asked for.
static void save(const WiseFt *w, const Merge *m, const char *name) {
    const Options *o = w->o;
    char path[PATH_SIZE];
    struct stat st;
    path_format(path, "%s/%s.bin", o->save, name);
    for (int k = w->base ? -1 : 0; k < w->count; k++)
        if (stat(path, &st) == 0 && merge_same_file(&st, k < 0 ? &w->base->st : &w->members[k]->st))
            die(EXIT_USAGE, "%s: is one of the models that are averaged; choose another --save", path);
    const double start = seconds_now(), bytes = merge_save(m, path), seconds = seconds_now() - start;
    output("saved        %s: %.1f MB read and written in %.2f s, %.2f GB/s", path, bytes / 1e6, seconds,
        bytes / 1e9 / seconds);
    if (strcmp(o->format, "bin") != 0) convert(path, o->format);
}

// ---------------------------------------------------------------- between two models: WiSE-FT, LiNeS

static void alpha_label(char label[32], double alpha) { snprintf(label, 32, "%.12g", alpha); }

static bool measure_alpha(WiseFt *w, Merge *m, double alpha) {
    char label[32];
    alpha_label(label, alpha);
    m->alpha = alpha_at(w->o, alpha);
    return measure(w, m, label, alpha) != NULL;
}

// Prints what the choice of a point among those sorted by α is worth.
static void print_choice(WiseFt *w, int best, SweepMeasure what) {
    const SweepPoint *p = &w->points[best], *a = &w->points[0], *b = &w->points[w->point_count - 1];
    Interval value, gain;
    sweep_bootstrap(&w->sweep, p, a, b, what, &value, &gain);
    const double low = 100 * gain.low, high = 100 * gain.high, points = 100 * gain.value;
    logger_print(&w->log,
        "chosen       alpha = %s by %s: %.2f%% (95%% interval %.2f to %.2f); alpha = 0: %.2f%%, alpha = 1: "
        "%.2f%%",
        p->label, w->o->select, 100 * value.value, 100 * value.low, 100 * value.high,
        100 * sweep_value(&w->sweep, a->top1, what), 100 * sweep_value(&w->sweep, b->top1, what));
    if (points <= 0) logger_print(&w->log, "gain         none: no average is better than both ends");
    else if (low > 0)
        logger_print(&w->log, "gain         %.2f points over the better end (95%% interval %.2f to %.2f)",
            points, low, high);
    else
        logger_print(&w->log,
            "gain         %.2f points over the better end, which is not significant: the 95%% interval, %.2f "
            "to %.2f, contains 0",
            points, low, high);
    if (points > 0)
        logger_print(&w->log, "             measured on the images that chose alpha, so slightly "
                              "too high; report a figure from "
                              "other images");
}

// Tries more α around the best one, then chooses. Returns the index of the chosen point; -1 after Ctrl-C.
static int select_alpha(WiseFt *w, Merge *m, SweepMeasure what) {
    for (int64_t step = 0; step < w->o->select_steps; step++) {
        qsort(w->points, w->point_count, sizeof *w->points, compare_points);
        const double alpha = sweep_next_alpha(&w->sweep, w->points, (int)w->point_count, what, 0.02);
        if (isnan(alpha)) break;
        if (!measure_alpha(w, m, alpha)) return -1;
    }
    qsort(w->points, w->point_count, sizeof *w->points, compare_points);
    const int best = sweep_best(&w->sweep, w->points, (int)w->point_count, what);
    print_choice(w, best, what);
    return best;
}

static int line_main(WiseFt *w) {
    const Options *o = w->o;
    const char *folder = o->save ? o->save : ".";
    Merge m = {.kind = MERGE_WISE_FT, .base = w->base, .members = w->members, .count = 1};
    int chosen = -1;
    alphas_parse(w, o->alpha ? o->alpha : o->select ? "0:1:0.1" : "0.5");
    if (o->select) {
        alpha_add(w, 0);
        alpha_add(w, 1);
    } // the ends, which the choice is compared with
    if (w->sweep.count) {
        sweep_print_header(&w->sweep, "alpha");
        for (int i = 0; i < w->alpha_count; i++)
            if (!measure_alpha(w, &m, w->alphas[i])) return EXIT_SIGNAL + train_interrupted;
        const SweepMeasure what = !o->select || strcmp(o->select, "target") == 0 ? SWEEP_TARGET
                                  : strcmp(o->select, "shift") == 0              ? SWEEP_SHIFT
                                                                                 : SWEEP_MEAN;
        if (o->select && (chosen = select_alpha(w, &m, what)) < 0) return EXIT_SIGNAL + train_interrupted;
        sweep_write(&w->sweep, w->points, (int)w->point_count, chosen, folder);
    }
    for (int i = 0; o->save && i < (chosen >= 0 ? 1 : w->alpha_count); i++) {
        char name[64], label[32];
        const double alpha = chosen >= 0 ? w->points[chosen].alpha : w->alphas[i];
        alpha_label(label, alpha);
        snprintf(name, sizeof name, "%s_%s", is_method(o, "lines") ? "lines" : "alpha", label);
        m.alpha = alpha_at(o, alpha);
        save(w, &m, name);
    }
    return EXIT_SUCCESS;
}

// ---------------------------------------------------------------- several models: soups, Model Stock, tasks

static const char *file_label(const MergeFile *f) {
    const char *slash = strrchr(f->w.path, '/');
    return slash ? slash + 1 : f->w.path;
}

// Measures the members one by one; false after Ctrl-C.
static bool measure_members(WiseFt *w) {
    sweep_print_header(&w->sweep, "model");
    for (int k = 0; k < w->count; k++) {
        const Merge one = {.kind = MERGE_MEAN, .members = &w->members[k], .count = 1};
        if (!measure(w, &one, file_label(w->members[k]), NAN)) return false;
    }
    return true;
}

// Greedy soup (Wortsman et al. 2022, recipe 1): from the best member down, each stays in the soup unless that
// makes it worse on the target. Sets `soup` to the members that stayed; false after Ctrl-C.
static bool greedy_soup(WiseFt *w, Merge *soup) {
    int *order = (int *)malloc_check((size_t)w->count * sizeof *order);
    double best = -1;
    for (int k = 0; k < w->count; k++) { // by falling accuracy; equals in the order of the command line
        int at = k;
        const double value = sweep_value(&w->sweep, w->points[k].top1, SWEEP_TARGET);
        for (; at > 0 && sweep_value(&w->sweep, w->points[order[at - 1]].top1, SWEEP_TARGET) < value; at--)
            order[at] = order[at - 1];
        order[at] = k;
    }
    soup->count = 0;
    bool whole = true;
    for (int k = 0; k < w->count; k++) {
        MergeFile *member = w->members[order[k]];
        double value = sweep_value(&w->sweep, w->points[order[k]].top1, SWEEP_TARGET);
        soup->members[soup->count++] = member;
        if (k > 0) {
            char label[64];
            snprintf(label, sizeof label, "+ %.50s", file_label(member));
            const SweepPoint *p = measure(w, soup, label, NAN);
            if (!(whole = p != NULL)) break;
            value = sweep_value(&w->sweep, p->top1, SWEEP_TARGET);
        }
        const bool stays = value >= best;
        if (k == 0)
            logger_print(&w->log, "greedy       1. %s begins: %.2f%%", file_label(member), 100 * value);
        else
            logger_print(&w->log, "greedy       %d. %s %s: %.2f%% with it, %.2f%% without", k + 1,
                file_label(member), stays ? "stays" : "is left out", 100 * value, 100 * best);
        if (stays) best = value;
        else soup->count--;
    }
    free(order);
    return whole;
}

static void print_ratios(WiseFt *w, const Merge *m) {
    const TensorTable *tensors = &merge_template(m)->tensors;
    double low = 1, high = 0, mean = 0;
    for (int i = 0; i < tensors->count; i++) {
        const double t = m->ratio[i];
        const double share = (double)tensors->list[i].count / (double)tensors->parameters;
        low = fmin(low, t);
        high = fmax(high, t);
        mean += share * t;
    }
    logger_print(&w->log,
        "model stock  takes %.3f of the mean of %d models and %.3f of the model before fine-tuning (per "
        "tensor %.3f to %.3f)",
        mean, m->count, 1 - mean, low, high);
}

static int many_main(WiseFt *w) {
    const Options *o = w->o;
    const bool greedy = o->soup && strcmp(o->soup, "greedy") == 0;
    Merge m = {.kind = o->soup                       ? MERGE_MEAN
                       : is_method(o, "model-stock") ? MERGE_MODEL_STOCK
                                                     : MERGE_TASK_ARITHMETIC,
        .base = w->base,
        .count = w->count};
    m.members = (MergeFile **)malloc_check((size_t)w->count * sizeof *m.members);
    memcpy(m.members, w->members, (size_t)w->count * sizeof *m.members);
    const char *name = greedy                        ? "soup_greedy"
                       : o->soup                     ? "soup_uniform"
                       : m.kind == MERGE_MODEL_STOCK ? "model_stock"
                                                     : "task_arithmetic";
    double *lambda = lambdas_parse(o->lambda, w->count);
    m.lambda = lambda;
    if (m.kind == MERGE_MODEL_STOCK) {
        m.ratio = (double *)malloc_check((size_t)merge_template(&m)->tensors.count * sizeof *m.ratio);
        merge_stock_ratios(&m);
        print_ratios(w, &m);
    }
    bool whole = true;
    if (w->sweep.count)
        whole = measure_members(w) && (greedy ? greedy_soup(w, &m) : measure(w, &m, name, NAN) != NULL);
    if (whole && w->sweep.count)
        sweep_write(&w->sweep, w->points, (int)w->point_count, -1, o->save ? o->save : ".");
    if (whole && o->save) save(w, &m, name);
    free(lambda);
    free(m.ratio);
    free(m.members);
    return whole ? EXIT_SUCCESS : EXIT_SIGNAL + train_interrupted;
}

// ---------------------------------------------------------------- the program

static void wise_ft_free(WiseFt *w) {
    if (w->base) merge_file_close(w->base);
    for (int k = 0; k < w->count; k++) merge_file_close(w->members[k]);
    for (size_t i = 0; i < w->point_count; i++) sweep_point_free(&w->points[i]);
    sweep_close(&w->sweep);
    free(w->members);
    free(w->alphas);
    free(w->points);
    data_free(&w->data);
    logger_close(&w->log);
    if (w->clip) clip_free(w->clip);
    options_free(w->o);
}

int main(int argc, char **argv) {
    Options options;
    program_begin();
    json_begin();
    strategies_help(argc, argv);
    options_parse(&options, argc, argv);
    processes_refuse("wise_ft");
    options_check(&options);
    WiseFt w = {.o = &options};
    logger_open(&w.log, NULL, false);
    files_open(&w);
    if (options.save) make_directories(options.save);
    if (options.eval.count) evaluation_open(&w);
    const int code = is_line(&options) ? line_main(&w) : many_main(&w);
    wise_ft_free(&w);
    return program_end(code);
}
