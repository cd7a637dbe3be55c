// Schedules: known rates, edges, and the schedule that options ask for. With a folder of stored results (its
// part `model`), every row of schedules.csv: the rates of open_clip, transformers and torch.
//     build/test_schedulers [DIR]
#include "clipc/data/csv.h"
#include "clipc/base/schedules.h"
#include "dev/test/child.h"

static void expect_rates(
    const char *what, const Schedule *s, const int64_t *steps, const double *rates, int n) {
    for (int i = 0; i < n; i++) {
        const double rate = schedule_lr(s, steps[i]);
        EXPECT(fabs(rate - rates[i]) <= 1e-6 * fabs(rates[i]) + 1e-12, "%s, step %lld: %.9g instead of %.9g",
            what, (long long)steps[i], rate, rates[i]);
    }
}

static void test_rates_equal_known_values(void) {
    const int64_t count[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    const int64_t many[] = {0, 1, 10, 11, 55, 99};
    const int64_t slanted[] = {0, 5, 10, 11, 99};
    const double cycle[] = {
        .04, .52, 1, .95048463, .81174565, .61126202, .38874198, .18825835, .049519368, 4e-6};
    const double cosine[] = {0, .1, 1, .999695413509, .5, .000304586490};
    const double triangle[] = {.03125, .515625, 1, .989236111, .0420138889};
    Schedule s = schedule_create(SCHEDULE_ONE_CYCLE, 1, 10);
    expect_rates("one cycle", &s, count, cycle, 10);
    s = schedule_create(SCHEDULE_COSINE, 1, 100);
    s.warmup = 10;
    s.warmup_offset = 0;
    expect_rates("cosine", &s, many, cosine, 6);
    s.warmup_offset = 1;
    EXPECT_CLOSE(schedule_lr(&s, 0), .1, 1e-15); // open_clip's warmup
    EXPECT_CLOSE(schedule_lr(&s, 9), 1, 1e-15);
    s.min_lr_ratio = .25;
    EXPECT_CLOSE(schedule_lr(&s, 55), .625, 1e-15);
    EXPECT_CLOSE(schedule_lr(&s, 1000), .25, 1e-15); // after the end
    s = schedule_create(SCHEDULE_STLR, 1, 100);
    expect_rates("slanted", &s, slanted, triangle, 5);
    s = schedule_create(SCHEDULE_EXPONENTIAL, 2, 100);
    s.gamma = .25;
    s.step_size = 10;
    s.warmup = 4;
    EXPECT_CLOSE(schedule_lr(&s, 1), 1, 1e-15);
    EXPECT_CLOSE(schedule_lr(&s, 4), 2, 1e-15);
    EXPECT_CLOSE(schedule_lr(&s, 9), 1, 1e-15);
    s = schedule_create(SCHEDULE_CONST_COOLDOWN, 1, 100);
    s.cooldown = 20;
    s.cooldown_end = .5;
    s.cooldown_power = 2;
    EXPECT_CLOSE(schedule_lr(&s, 80), 1, 1e-15);
    EXPECT_CLOSE(schedule_lr(&s, 90), .625, 1e-15);
    EXPECT_CLOSE(schedule_lr(&s, 100), .5, 1e-15);
}

static void test_defaults_follow_the_length_of_the_run(void) {
    Schedule s = schedule_create(SCHEDULE_STEP, 1, 301); // s a third of the run, gamma .1
    EXPECT(schedule_lr(&s, 100) == 1 && s.step_size == 101);
    EXPECT_CLOSE(schedule_lr(&s, 101), .1, 1e-15);
    EXPECT_CLOSE(schedule_lr(&s, 202), .01, 1e-15);
    EXPECT_CLOSE(schedule_lr(&s, 300), .01, 1e-15); // three phases
    s = schedule_create(SCHEDULE_RESTARTS, 1, 402); // T0 a quarter, M 2
    EXPECT(s.t_0 == 100 && s.t_mult == 2 && schedule_lr(&s, 100) == 1 && schedule_lr(&s, 300) == 1);
    EXPECT_CLOSE(schedule_lr(&s, 200), .5, 1e-15);
    s = schedule_create(SCHEDULE_EXPONENTIAL, 1, 10);
    EXPECT_CLOSE(schedule_lr(&s, 2), .9025, 1e-15);
}

// T0 (M^n - 1)/(M - 1) is where period n begins, for every n: none is missed by rounding.
static void test_every_restart_is_met(void) {
    for (int64_t m = 1; m <= 7; m++) {
        Schedule s = schedule_create(SCHEDULE_RESTARTS, 1, (int64_t)1e12);
        s.t_0 = 11;
        s.t_mult = m;
        int64_t begin = 0, period = 11;
        for (int n = 0; n < 40 && begin < (int64_t)1e12; n++, begin += period, period *= m) {
            EXPECT(schedule_lr(&s, begin) == 1, "M %lld, period %d", (long long)m, n);
            if (begin) EXPECT(schedule_lr(&s, begin - 1) < .03);
        }
    }
}

static void test_momentum_goes_against_the_rate(void) {
    Schedule s = schedule_create(SCHEDULE_ONE_CYCLE, 1, 100);
    EXPECT(schedule_beta1(&s, 29, .9) == .9);
    s.cycle_momentum = true;
    for (int three = 0; three < 2; three++) {
        s.three_phase = three;
        EXPECT_CLOSE(schedule_beta1(&s, 0, .9), .95, 1e-15);
        EXPECT_CLOSE(schedule_beta1(&s, 29, .9), .85, 1e-15);
        EXPECT_CLOSE(schedule_beta1(&s, 99, .9), .95, 1e-15);
    }
    EXPECT_CLOSE(schedule_beta1(&s, 58, .9), .95, 1e-15); // three phases: the second ends at 2 (30 - 1)
    s.kind = SCHEDULE_COSINE;
    EXPECT(schedule_beta1(&s, 29, .9) == .9);
}

// Runs of one step, runs that are all warmup, ramps of length 0: every rate is finite, not negative, and not
// above the peak.
static void test_rates_stay_finite_at_the_edges(void) {
    for (int kind = 0; kind < SCHEDULE_COUNT; kind++) {
        for (int64_t total = 1; total <= 12; total++) {
            for (int variant = 0; variant < 24; variant++) {
                Schedule s = schedule_create((ScheduleKind)kind, 3e-4, total);
                s.warmup = schedule_has_own_ramp(s.kind) ? 0 : variant % 3 * total / 2; // none, half, all
                s.cut_frac = s.pct_start = variant % 4 / 3.0;                           // 0 … 1
                s.three_phase = variant & 1;
                s.anneal_linear = variant >> 1 & 1;
                s.cycle_momentum = true;
                s.cooldown = variant % 5 * total / 4;
                s.cooldown_power = variant & 1 ? 0.5 : 2;
                s.min_lr_ratio = variant % 2 / 2.0;
                s.t_mult = 1 + variant % 3;
                s.step_size = 1 + variant % 7;
                for (int64_t t = 0; t <= total + 3; t++) {
                    const double rate = schedule_lr(&s, t), beta1 = schedule_beta1(&s, t, 0.9);
                    EXPECT(rate >= 0 && rate <= 3e-4 * (1 + 1e-12),
                        "kind %d, total %lld, variant %d, step %lld: %g", kind, (long long)total, variant,
                        (long long)t, rate);
                    EXPECT(beta1 >= 0.85 - 1e-12 && beta1 <= 0.95 + 1e-12, "kind %d: beta1 %g", kind, beta1);
                }
            }
        }
    }
}

// ---------------------------------------------------------------- the options

// A command line, and the step t of a run of `steps` steps, 10 in an epoch.
typedef struct {
    const char *line;
    int64_t steps, t;
} RateCase;

// Prints the learning rate.
static void rate_by_options(const void *argument) {
    const RateCase *r = (const RateCase *)argument;
    char copy[512], *argv[64] = {(char *)"test_schedulers"};
    int argc = 1;
    snprintf(copy, sizeof copy, "%s", r->line);
    for (char *p = strtok(copy, " "); p; p = strtok(NULL, " ")) argv[argc++] = p;
    Options o;
    options_parse(&o, argc, argv);
    if (!options_was_set(&o, lr)) o.lr = 1;
    if (!options_was_set(&o, epochs)) o.epochs = r->steps / 10;
    schedule_check_options(&o);
    const Schedule s = schedule_from_options(&o, r->steps, 10);
    printf("%.17g\n", schedule_lr(&s, r->t));
    options_free(&o);
}

static void test_options_make_the_schedule(void) {
    static const struct {
        RateCase at;
        double rate;
    } cases[] = {
        {{"", 100, 0}, .1}, // cosine, warmup 10%
        {{"", 100, 55}, .5},
        {{"--warmup 33%", 100, 0}, 1. / 33},
        {{"--warmup 7.9%", 100, 0}, 1. / 7}, // rounded down
        {{"--warmup 0 --min-lr-ratio 0.5 --lr 2", 100, 50}, 1.5},
        {{"--lr-scheduler linear --warmup 0", 100, 25}, .75},
        {{"--lr-scheduler stlr", 100, 0}, .03125},
        {{"--lr-scheduler stlr --cut-frac 0.5 --stlr-ratio 2", 100, 25}, .75},
        {{"--lr-scheduler exponential --warmup 0", 100, 10}, .95}, // an epoch
        {{"--lr-scheduler exponential --warmup 0 --step-size 5 --gamma 0.5", 100, 10}, .25},
        {{"--lr-scheduler step --warmup 0", 100, 34}, .1},
        {{"--lr-scheduler step --warmup 0 --step-size 5 --gamma 0.5", 100, 14}, .25},
        {{"--lr-scheduler cosine-restarts --warmup 0", 100, 50}, .5},
        {{"--lr-scheduler cosine-restarts --warmup 0 --t-0 10 --t-mult 1 --min-lr-ratio 0.2", 100, 95}, .6},
        {{"--lr-scheduler one-cycle", 10, 1}, .52},
        {{"--lr-scheduler one-cycle --anneal linear --pct-start 0.6 --div-factor 10 --final-div-factor 2", 11,
             10},
            .05},
        {{"--lr-scheduler one-cycle --pct-start 0.6", 10, 5}, 1},
        {{"--lr-scheduler one-cycle --three-phase --pct-start 0.3", 10, 4}, .04}, // down again at 2 (3 - 1)
        {{"--lr-scheduler const", 100, 99}, 1},
        {{"--lr-scheduler const-cooldown --epochs-cooldown 2 --lr-cooldown-end 0.5 --lr-cooldown-power 2",
             100, 90},
            .625},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int code = child_run(rate_by_options, &cases[i].at);
        EXPECT(code == 0 && fabs(strtod(child.text, NULL) - cases[i].rate) <= 1e-12, "'%s' step %lld: %s",
            cases[i].at.line, (long long)cases[i].at.t, child.text);
    }
}

static void test_nonsense_is_refused(void) {
    static const char *const refused[][2] = {
        {"--lr-scheduler stlr --warmup 5", "has a ramp of its own"},
        {"--lr-scheduler one-cycle --warmup 5%", "has a ramp of its own"},
        {"--lr-scheduler const-cooldown", "--epochs-cooldown"},
        {"--lr-scheduler const-cooldown --epochs-cooldown 11", "the run has 10 epochs"},
        {"--lr-scheduler const-cooldown --epochs-cooldown 2 --lr 1e-4 --lr-cooldown-end 1e-3", "above --lr"},
        {"--lr-scheduler triangle", "give one of"},
        {"--pct-start 1.5", "out of range"},
        {"--step-size 0", "out of range"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const RateCase wrong = {refused[i][0], 100, 0};
        const int code = child_run(rate_by_options, &wrong);
        EXPECT(child_refused(refused[i][1]), "'%s': exit code %d: %s", wrong.line, code, child.text);
    }
    const RateCase no_effect = {"--gamma 0.5", 100, 0};
    EXPECT(child_run(rate_by_options, &no_effect) == 0 && strstr(child.text, "--gamma has no effect"), "%s",
        child.text);
    const RateCase resumed = {
        "--lr-scheduler stlr --warmup 0", 100, 0}; // as in the settings of a resumed run
    EXPECT(child_run(rate_by_options, &resumed) == 0, "%s", child.text);
}

// ---------------------------------------------------------------- stored results

static double json_field(const json_t *params, const char *name) {
    const json_t *value = json_object_get(params, name);
    return json_is_boolean(value) ? json_is_true(value) : json_number_value(value);
}

// The schedule that a row's name and parameters describe, with peak 1; false for a name this test does not
// know.
static bool schedule_of_row(Schedule *s, const char *name, const json_t *p, int64_t total) {
    static const struct {
        const char *name;
        ScheduleKind kind;
        int offset;
    } known[] = {{"open_clip_const", SCHEDULE_CONST, 1}, {"open_clip_cosine", SCHEDULE_COSINE, 1},
        {"open_clip_const_cooldown", SCHEDULE_CONST_COOLDOWN, 1}, {"hf_linear", SCHEDULE_LINEAR, 0},
        {"hf_cosine", SCHEDULE_COSINE, 0}, {"hf_cosine_hard_restarts", SCHEDULE_RESTARTS, 0},
        {"torch_onecycle", SCHEDULE_ONE_CYCLE, 1}, {"torch_cosine_warm_restarts", SCHEDULE_RESTARTS, 1},
        {"torch_exponential", SCHEDULE_EXPONENTIAL, 1}, {"torch_step", SCHEDULE_STEP, 1},
        {"stlr", SCHEDULE_STLR, 1}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) != 0) continue;
        *s = schedule_create(known[i].kind, 1, total);
        s->warmup_offset = known[i].offset;
        const struct {
            const char *name;
            double *real;
            int64_t *integer;
        } fields[] = {{"cycles", &s->cycles, NULL}, {"gamma", &s->gamma, NULL},
            {"cut_frac", &s->cut_frac, NULL}, {"ratio", &s->stlr_ratio, NULL},
            {"pct_start", &s->pct_start, NULL}, {"div_factor", &s->div_factor, NULL},
            {"final_div_factor", &s->final_div_factor, NULL}, {"min_factor", &s->min_lr_ratio, NULL},
            {"end_factor", &s->cooldown_end, NULL}, {"power", &s->cooldown_power, NULL},
            {"warmup", NULL, &s->warmup}, {"cooldown", NULL, &s->cooldown}, {"T_0", NULL, &s->t_0},
            {"T_mult", NULL, &s->t_mult}, {"step_size", NULL, &s->step_size}};
        s->step_size = 1; // of torch's exponential, which has no such parameter
        for (size_t k = 0; k < sizeof fields / sizeof *fields; k++) {
            if (!json_object_get(p, fields[k].name)) continue;
            if (fields[k].real) *fields[k].real = json_field(p, fields[k].name);
            else *fields[k].integer = (int64_t)json_field(p, fields[k].name);
        }
        s->three_phase = json_field(p, "three_phase") != 0;
        const char *anneal = json_string_value(json_object_get(p, "anneal"));
        s->anneal_linear = anneal && strcmp(anneal, "linear") == 0;
        return true;
    }
    return false;
}

static void test_rates_equal_the_stored_results(const char *folder) {
    char path[PATH_SIZE];
    CsvReader r;
    path_format(path, "%s/schedules.csv", folder);
    csv_open(&r, path, ',', NULL, 0);
    size_t rows = 0;
    for (; csv_read_row(&r); rows++) { // schedule, params_json, total, step, factor
        const char *name = r.fields[0].start, *json = r.count == 5 ? r.fields[1].start : "";
        json_t *params = json_loads(json, 0, NULL);
        const int64_t total = params ? atoll(r.fields[2].start) : 0;
        const int64_t step = params ? atoll(r.fields[3].start) : 0;
        Schedule s;
        const bool known = params && schedule_of_row(&s, name, params, total);
        const double factor = known ? strtod(r.fields[4].start, NULL) : NAN;
        const double rate = known ? schedule_lr(&s, step) : NAN;
        EXPECT(fabs(rate - factor) <= 1e-11 * fabs(factor) + 1e-15,
            "row %zu, %s %s total %lld step %lld: %.17g instead of %.17g", rows, name, json, (long long)total,
            (long long)step, rate, factor);
        json_decref(params);
    }
    EXPECT(rows > 0, "%s: no rows", path);
    free(r.text);
    free(r.fields);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        RUN(test_rates_equal_the_stored_results, argv[1]);
        return test_report();
    }
    RUN(test_rates_equal_known_values);
    RUN(test_defaults_follow_the_length_of_the_run);
    RUN(test_every_restart_is_met);
    RUN(test_momentum_goes_against_the_rate);
    RUN(test_rates_stay_finite_at_the_edges);
    RUN(test_options_make_the_schedule);
    RUN(test_nonsense_is_refused);
    return test_report();
}
