// Advice on constructed curves: each sign fires where it should, with its figures; none fires in healthy
// runs, on noise, or on missing data.
#include "clipc/train/monitor.h"
#include "dev/test/test.h"

enum { STEPS = 1000, EVERY = 100, PAIRS = 64 };
#define GUESS 4.1588830833596715 // ln 64

static const AdviceSet sets[] = {{"", 10, 2000}, {"general", 100, 2000}};

static AdviceFacts facts(void) {
    AdviceFacts f = {PAIRS, STEPS, 100, true, false, "val_loss", sets, 2, false, "--lock-image"};
    return f;
}

typedef struct {
    double loss, val, target, general, norm;
} Point;

// A run: `shape` gives the curves at share p = 0 … 1 of it; losses get noise as batches have.
static Curves run(Point (*shape)(double p), double noise) {
    Curves h;
    Rand r = rand_for(7, 0, 0);
    memset(&h, 0, sizeof h);
    for (int step = 0; step <= STEPS; step++) {
        const Point x = shape((double)step / STEPS);
        if (step > 0) {
            curves_add(&h, "loss", step, x.loss + noise * rand_normal(&r));
            curves_add(&h, "grad_norm", step, x.norm * exp(0.3 * rand_normal(&r)));
        }
        if (step % EVERY == 0) {
            curves_add(&h, "val_loss", step, x.val);
            curves_add(&h, "zeroshot_top1", step, x.target);
            curves_add(&h, "zeroshot_top1/general", step, x.general);
        }
    }
    return h;
}

// Which advice a run gets at each of its evaluations, as letters: . none, A R O F U.
static void advices(char letters[STEPS / EVERY + 2], const Curves *h, const AdviceFacts *f) {
    char text[ADVICE_SIZE];
    int n = 0;
    for (int step = 0; step <= STEPS; step += EVERY) {
        const Advice a = advice_at(text, h, step, f);
        letters[n++] = ".AROFU"[a];
        EXPECT((a == ADVICE_NONE) == (text[0] == 0), "step %d: '%s'", step, text);
    }
    letters[n] = 0;
}

static Point healthy(double p) {
    Point x = {0.4 + 1.2 * exp(-3 * p), 0.7 + 0.9 * exp(-3 * p), 0.55 + 0.2 * p, 0.60 - 0.015 * p, 3};
    return x;
}
static Point from_random(double p) {
    Point x = {0.5 + 3.7 * exp(-4 * p), 0.9 + 3.3 * exp(-4 * p), 0.10 + 0.5 * p, 0.01 + 0.2 * p, 2};
    return x;
}
static Point overfit(double p) { // the validation loss turns at 0.4
    Point x = healthy(p);
    x.loss = 0.1 + 1.5 * exp(-4 * p);
    x.val = 1 + (p - 0.4) * (p - 0.4) * 2;
    return x;
}
static Point forget(double p) {
    Point x = healthy(p);
    x.general = 0.60 - 0.3 * p;
    return x;
}
static Point underfit(double p) {
    (void)p;
    Point x = {1.6, 1.6, 0.55, 0.60, 3};
    return x;
}
static Point collapse(double p) {
    Point x = healthy(p);
    if (p > 0.3) {
        x.loss = x.val = GUESS;
        x.target = 0.1;
        x.general = 0.01;
        x.norm = 0.01;
    }
    return x;
}
static Point nothing(double p) {
    (void)p;
    Point x = {GUESS, GUESS, 0.1, 0.01, 0.01};
    return x;
}
static Point rising(double p) {
    Point x = {1.6 + p, 1.6 + p, 0.55 - 0.2 * p, 0.6 - 0.3 * p, 3};
    return x;
}
static Point exploding(double p) {
    Point x = healthy(p);
    if (p > 0.5) {
        x.loss = 0.75;
        x.norm = 300;
    }
    return x;
}
static Point mismatch(double p) {
    Point x = healthy(p);
    if (p == 0) {
        x.target = 0.104;
        x.general = 0.011;
    }
    return x;
}

static void test_each_run_gets_its_advice(void) {
    static const struct {
        const char *what;
        Point (*shape)(double p);
        double noise;
        bool pretrained;
        const char *expected; // at steps 0, 100, …
    } cases[] = {
        {"healthy", healthy, 0.1, true, "..........."},
        {"healthy without noise", healthy, 0, true, "..........."},
        {"from random", from_random, 0.1, false, "..........."},
        {"overfitting", overfit, 0.05, true, ".......OOOO"},
        {"forgetting", forget, 0.1, true, "..FFFFFFFFF"},
        {"underfitting", underfit, 0.02, true, ".....UUUUUU"},
        {"collapse", collapse, 0.001, true, "....RRRRRRR"},
        {"nothing learned", nothing, 0.001, false, "..RRRRRRRRR"},
        {"rising loss", rising, 0.02, true, "...RRRRRRRR"},
        {"exploding norm", exploding, 0.02, true, "......RRRRR"},
        {"mismatched activation", mismatch, 0.1, true, "A.........."},
        {"a random start guesses", mismatch, 0.1, false, "..........."},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Curves h = run(cases[i].shape, cases[i].noise);
        AdviceFacts f = facts();
        char letters[STEPS / EVERY + 2];
        f.pretrained = cases[i].pretrained;
        advices(letters, &h, &f);
        EXPECT(strcmp(letters, cases[i].expected) == 0, "%s: %s instead of %s", cases[i].what, letters,
            cases[i].expected);
        curves_free(&h);
    }
}

// The line contains the figures it is based on, and what helps.
static void test_texts_have_figures_and_remedies(void) {
    static const struct {
        Point (*shape)(double p);
        int step;
        const char *parts[6];
    } cases[] = {
        {overfit, 700,
            {"val_loss has risen three times, 1 to 1.18,", "it was best at step 400", "--early-stop",
                "--lock-image", "--wd", "--aug-cfg"}},
        {forget, 1000,
            {"the target went from 55.0% to 75.0%", "general from 60.0% to 30.0%", "lower --lr", "wise_ft",
                "mix general data", "--lock-image"}},
        {underfit, 1000,
            {"stays at 1.6 ", "val_loss at 1.6 (1.6)", "zero-shot at 55.0% (55.0%)", "higher --lr",
                "more --epochs, lower --wd", "stays"}},
        {collapse, 1000,
            {"ln(64) = 4.159", "collapsed", "--lr", "lr_find", "--grad-clip-norm", "start again"}},
        {mismatch, 0,
            {"10.4%", "10 classes gives 10.0%", "GELU here", "--force-quick-gelu", "--classnames", "mean"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Curves h = run(cases[i].shape, 0);
        const AdviceFacts f = facts();
        char text[ADVICE_SIZE];
        advice_at(text, &h, cases[i].step, &f);
        for (int k = 0; k < 6; k++)
            EXPECT(strstr(text, cases[i].parts[k]), "'%s' is not in '%s'", cases[i].parts[k], text);
        EXPECT(!strchr(text, '\n'));
        curves_free(&h);
    }
}

// What is locked already is not advised again, and where nothing is locked, unlocking is not advised.
static void test_locks_are_advised_where_there_is_more_to_lock(void) {
    static const struct {
        Point (*shape)(double p);
        int step;
        bool locked;
        const char *lock_more, *part, *absent;
    } cases[] = {
        {overfit, 700, false, "--lock-image", "lock more (--lock-image), higher --wd", "--lock-text"},
        {overfit, 700, true, "--lock-text", "lock more (--lock-text), higher --wd", "--lock-image"},
        {overfit, 700, true, NULL, "(--early-stop 3), higher --wd", "lock"},
        {forget, 1000, false, "--lock-image",
            "lock early layers (--lock-image --lock-image-unlocked-groups 4), average", "lock more"},
        {forget, 1000, true, "--lock-text", "lower --lr, lock more (--lock-text), average", "--lock-image"},
        {forget, 1000, true, NULL, "lower --lr, average", "lock"},
        {underfit, 1000, false, "--lock-image", "more --epochs, lower --wd", "unlock"},
        {underfit, 1000, true, NULL, "more --epochs, unlock more, lower --wd", "(--"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Curves h = run(cases[i].shape, 0);
        AdviceFacts f = facts();
        char text[ADVICE_SIZE];
        f.locked = cases[i].locked;
        f.lock_more = cases[i].lock_more;
        advice_at(text, &h, cases[i].step, &f);
        EXPECT(strstr(text, cases[i].part) && !strstr(text, cases[i].absent), "case %zu: '%s'", i, text);
        curves_free(&h);
    }
}

// Measurement noise is not a sign: many flat curves with noise.
static Rand noise_rand;
static Point flat_with_noise(double p) {
    const double chance = sqrt(0.55 * 0.45 / 2000);
    Point x = {1.2 - 0.3 * p, 1.0 + 0.002 * rand_normal(&noise_rand),
        0.55 + chance * rand_normal(&noise_rand), 0.6 + chance * rand_normal(&noise_rand), 3};
    return x;
}

static void test_noise_is_not_a_sign(void) {
    int fired = 0;
    noise_rand = rand_for(1, 2, 3);
    for (int k = 0; k < 100; k++) {
        Curves h = run(flat_with_noise, 0.1);
        const AdviceFacts f = facts();
        char letters[STEPS / EVERY + 2];
        advices(letters, &h, &f);
        for (char *p = letters; *p; p++) fired += *p != '.';
        curves_free(&h);
    }
    EXPECT(fired <= 5, "%d of 1100", fired);
}

// Runs that measure nothing, have just begun, or hold values that are not finite.
static void test_missing_measurements_give_no_advice(void) {
    AdviceFacts f = facts(), bare = facts();
    char text[ADVICE_SIZE];
    Curves empty, h = run(overfit, 0.05);
    memset(&empty, 0, sizeof empty);
    bare.val_metric = NULL;
    bare.sets = NULL;
    bare.set_count = 0;
    for (int step = 0; step <= STEPS; step += EVERY) {
        EXPECT(advice_at(text, &empty, step, &f) == ADVICE_NONE);
        EXPECT(advice_at(text, &empty, step, &bare) == ADVICE_NONE);
        EXPECT(advice_at(text, &h, step, &bare) == ADVICE_NONE, "%s", text);
    }
    EXPECT(advice_at(text, &h, 300, &f) == ADVICE_NONE); // what comes later is not known yet
    for (size_t i = 0; i < h.count; i++)
        for (size_t k = 0; k < h.list[i].n; k++) h.list[i].y[k] = NAN;
    for (int step = 0; step <= STEPS; step += EVERY)
        EXPECT(advice_at(text, &h, step, &f) == ADVICE_NONE, "%s", text);
    curves_free(&h);
    for (int step = 1; step <= 4; step++) curves_add(&empty, "loss", step, GUESS);
    EXPECT(advice_at(text, &empty, 4, &f) == ADVICE_NONE);
    curves_free(&empty);
    h = run(overfit, 0.05);
    EXPECT(advice_at(text, &h, STEPS, &f) == ADVICE_OVERFITTING &&
               advice_at(text, &h, STEPS + 1, &f) == ADVICE_NONE,
        "%s", text); // nothing was measured there
    curves_free(&h);
    h = run(forget, 0.1);
    EXPECT(advice_at(text, &h, STEPS, &f) == ADVICE_FORGETTING &&
               advice_at(text, &h, STEPS + 1, &f) == ADVICE_NONE,
        "%s", text);
    curves_free(&h);
    f.val_metric = "val_loss/birds"; // not the curve that rises
    h = run(overfit, 0.05);
    EXPECT(advice_at(text, &h, STEPS, &f) == ADVICE_NONE, "%s", text);
    curves_free(&h);
}

// Overfitting is three rises in a row, by 1% together, while the training loss falls.
static void test_overfitting_needs_three_rises(void) {
    static const struct {
        double val[4];
        double fall; // of the training loss a step
        bool fires;
    } cases[] = {{{1, 1.1, 1.2, 1.3}, 0.01, true}, {{1, 1.1, 1.2, 1.15}, 0.01, false},
        {{1, 1.2, 1.1, 1.3}, 0.01, false}, {{1.2, 1.1, 1.2, 1.3}, 0.01, false},
        {{1, 1.1, 1.2, 1.3}, -0.001, false}, {{1, 1.001, 1.002, 1.003}, 0.01, false}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const AdviceFacts f = facts();
        char text[ADVICE_SIZE];
        Curves h;
        memset(&h, 0, sizeof h);
        for (int step = 1; step <= 40; step++) {
            curves_add(&h, "loss", step, 2 - cases[k].fall * step);
            if (step % 10 == 0) curves_add(&h, "val_loss", step, cases[k].val[step / 10 - 1]);
        }
        const Advice a = advice_at(text, &h, 40, &f);
        EXPECT((a == ADVICE_OVERFITTING) == cases[k].fires, "case %zu: %s", k, text);
        curves_free(&h);
    }
}

// In which step a run of 1,000 whose loss is `loss(step)` is told to be dead; 0: never.
static int died_at(double (*loss)(int step), int settled) {
    LossWatch w;
    memset(&w, 0, sizeof w);
    for (int step = 1; step <= STEPS; step++)
        if (watch_loss(&w, loss(step), GUESS, step > settled)) return step;
    return 0;
}

static double collapses(int step) { return step < 30 ? 3 : GUESS * 1.0002; }
static double stagnates(int step) { return GUESS * (1 + 0.003 * (step % 3 - 1)); }
static double comes_down(int step) { return GUESS * (step < 5 ? 3 : 1.0001); }
static double learns_late(int step) {
    return GUESS * (step < 90 ? 1.0002 : fmax(0.2, 1 - 0.002 * (step - 90)));
}
static double hovers(int step) { return GUESS * (0.97 + 0.025 * (step % 3)); } // never near for long
static double not_finite(int step) { return step < 30 ? 3 : NAN; }

static void test_a_run_that_has_died_is_told_within_50_steps(void) {
    EXPECT(died_at(collapses, STEPS) == 49, "%d", died_at(collapses, STEPS)); // even in the warmup
    EXPECT(died_at(stagnates, 100) == 101, "%d", died_at(stagnates, 100));
    EXPECT(died_at(stagnates, 0) == 40, "%d", died_at(stagnates, 0));
    EXPECT(died_at(comes_down, STEPS) == 44, "%d", died_at(comes_down, STEPS));
    EXPECT(died_at(learns_late, 100) == 0, "%d", died_at(learns_late, 100)); // random weights in the warmup
    EXPECT(died_at(hovers, 0) == 0, "%d", died_at(hovers, 0));
    EXPECT(died_at(not_finite, 0) == 0);
}

// Told once; again after it has learned something in between. Guessing that costs nothing says nothing.
static void test_a_run_may_come_back(void) {
    LossWatch w;
    memset(&w, 0, sizeof w);
    int told = 0;
    for (int step = 1; step <= 100; step++) told += watch_loss(&w, GUESS, GUESS, true);
    EXPECT(told == 1 && w.dead && strstr(w.text, "nothing is learned"), "%d times: %s", told, w.text);
    for (int step = 1; step <= 100; step++) told += watch_loss(&w, 1, GUESS, true);
    EXPECT(told == 1 && !w.dead);
    for (int step = 1; step <= 20; step++) told += watch_loss(&w, GUESS, GUESS, true);
    EXPECT(told == 2 && w.dead && strstr(w.text, "collapsed"), "%d times: %s", told, w.text);
    for (int step = 1; step <= 100; step++) EXPECT(!watch_loss(&w, 0, 0, true));
}

static void test_advice_has_names(void) {
    static const char *const names[] = {
        "none", "mismatch", "rate too high", "overfitting", "forgetting", "underfitting"};
    for (int a = 1; a < ADVICE_COUNT; a++) EXPECT_STRING(advice_name((Advice)a), names[a]);
}

int main(void) {
    RUN(test_each_run_gets_its_advice);
    RUN(test_overfitting_needs_three_rises);
    RUN(test_texts_have_figures_and_remedies);
    RUN(test_locks_are_advised_where_there_is_more_to_lock);
    RUN(test_noise_is_not_a_sign);
    RUN(test_missing_measurements_give_no_advice);
    RUN(test_a_run_that_has_died_is_told_within_50_steps);
    RUN(test_a_run_may_come_back);
    RUN(test_advice_has_names);
    return test_report();
}
