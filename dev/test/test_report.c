// The parts of report.html and of the monitor: which captions are best and worst, images as PNG, base64, text
// that is escaped, which model is the best, when to stop.
#include "clipc/train/report.h"
#include "dev/test/test.h"

static void test_captions_are_ranked_by_probability(void) {
    static const float scores[] = {1, 4, -2, 4, 3};
    ReportImage p;
    memset(&p, 0, sizeof p);
    p.own = 3;
    grid_rank(&p, scores, 5);
    EXPECT(p.best[0] == 1 && p.best[1] == 3 && p.best[2] == 4, "%d %d %d", p.best[0], p.best[1], p.best[2]);
    EXPECT(p.worst == 2 && p.rank == 2, "worst %d, rank %d", p.worst,
        p.rank); // of equal scores the first comes first
    const double sum = exp(-3) + 1 + exp(-6) + 1 + exp(-1);
    EXPECT_CLOSE(p.probability[0], 1 / sum, 1e-12);
    EXPECT_CLOSE(p.probability[2], exp(-1) / sum, 1e-12);
    p.own = 0;
    grid_rank(&p, scores, 2); // fewer captions than are shown
    EXPECT(p.best[0] == 1 && p.best[1] == 0 && p.best[2] == -1 && p.rank == 2 && p.worst == 0);
    grid_rank(&p, scores, 1);
    EXPECT(p.best[0] == 0 && p.best[1] == -1 && p.rank == 1 && p.worst == 0);
    EXPECT_CLOSE(p.probability[0], 1, 1e-12);
}

static void test_equal_captions_are_kept_once(void) {
    ReportGrid g;
    char longer[1000];
    memset(&g, 0, sizeof g);
    memset(longer, 'x', sizeof longer);
    EXPECT(grid_caption(&g, "a cat, not this", 5) == 0);
    EXPECT(grid_caption(&g, "a dog", 5) == 1);
    EXPECT(grid_caption(&g, "a cat", 5) == 0);
    EXPECT(grid_caption(&g, longer, sizeof longer) == 2);
    EXPECT(g.captions.count == 3 && strlen(g.captions.list[2]) < REPORT_CAPTION_BYTES);
    report_grid_free(&g);
}

static void test_png_is_read_back_as_it_was(
    void) { // an image comes back as it was, read by the decoder of training
    enum { S = 7 };
    uint8_t planes[3 * S * S];
    size_t bytes;
    for (int i = 0; i < 3 * S * S; i++) planes[i] = (uint8_t)(i * 37);
    uint8_t *png = png_of_planes(planes, S, &bytes);
    Image image;
    EXPECT(png && image_decode(&image, png, bytes, 1000) == IMAGE_OK);
    EXPECT(image.width == S && image.height == S);
    int wrong = 0;
    for (int i = 0; i < S * S; i++)
        for (int c = 0; c < 3; c++) wrong += image.rgb[3 * i + c] != planes[c * S * S + i];
    EXPECT(wrong == 0, "%d bytes differ", wrong);
    image_free(&image);
    free(png);
}

static void expect_base64(const char *data, const char *expected) { // RFC 4648, 10
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    html_base64(f, (const uint8_t *)data, strlen(data));
    fclose(f);
    EXPECT_STRING(text, expected);
    free(text);
}

static void test_text_is_escaped_and_base64_is_right(void) {
    expect_base64("", "");
    expect_base64("f", "Zg==");
    expect_base64("fo", "Zm8=");
    expect_base64("foo", "Zm9v");
    expect_base64("foob", "Zm9vYg==");
    expect_base64("\xff\xfe\xfd", "//79");
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    html_text(f, "<b> & \x01 \xff ü");
    fclose(f);
    EXPECT(strstr(text, "&lt;b&gt; &amp;") && !strchr(text, 1), "%s", text);
    free(text);
}

// A run's evaluations as (val_loss, zeroshot_top1): which are the best so far, and how many in a row bring no
// better loss.
static void test_best_model_and_patience_follow_the_metric(void) {
    static const double losses[] = {2.0, 1.5, 1.6, 1.4, 1.4, NAN, 1.9};
    static const double tops[] = {0.9, 0.1, 0.3, 0.3, NAN, 0.5, 0.2};
    static const bool best_top[] = {false, true, true, false, false, true, false};
    static const bool best_loss[] = {false, true, false, true, false, false, false};
    static const int64_t without[] = {0, 0, 1, 0, 1, 1, 2};
    for (int metric = 0; metric < 2; metric++) {
        Monitor *m = (Monitor *)calloc_check(1, sizeof *m);
        RunState s;
        memset(&s, 0, sizeof s);
        snprintf(m->val_metric, sizeof m->val_metric, "val_loss");
        snprintf(m->best_metric, sizeof m->best_metric, "%s", metric ? "val_loss" : "zeroshot_top1/target");
        for (int i = 0; i < 7; i++, s.step += 10) {
            Options o;
            m->last[0] = record_new(s.step);
            record_number(&m->last[0], "val_loss", losses[i]);
            record_number(&m->last[0], "zeroshot_top1/target", tops[i]);
            EXPECT(monitor_judge(m, &s) == (metric ? best_loss[i] : best_top[i]), "metric %d, evaluation %d",
                metric, i);
            EXPECT(s.evaluations_without_better == without[i], "evaluation %d: %lld", i,
                (long long)s.evaluations_without_better);
            memset(&o, 0, sizeof o);
            EXPECT(!monitor_stops(&o, &s));
            o.early_stop = 2;
            EXPECT(monitor_stops(&o, &s) == (i == 6));
        }
        EXPECT(s.best_step == (metric ? 30 : 50), "%lld", (long long)s.best_step);
        EXPECT_CLOSE(s.best_val_loss, 1.4, 0);
        EXPECT_CLOSE(s.best_metric, metric ? 1.4 : 0.5, 0);
        free(m);
    }
}

static void test_report_to_names_trackers(void) {
    static const struct {
        const char *value;
        bool tensorboard, wandb;
    } cases[] = {{NULL, false, false}, {"tensorboard", true, false}, {"wandb,tensorboard", true, true},
        {"wandb", false, true}, {"all", true, true}, {"tensor", false, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Options o;
        memset(&o, 0, sizeof o);
        o.report_to = cases[i].value;
        EXPECT(report_goes_to(&o, "tensorboard") == cases[i].tensorboard &&
                   report_goes_to(&o, "wandb") == cases[i].wandb,
            "%s", cases[i].value ? cases[i].value : "unset");
    }
}

static void test_evaluations_follow_each_other(void) {
    Curves h;
    memset(&h, 0, sizeof h);
    curves_add(&h, "val_loss", 3, 1);
    curves_add(&h, "loss", 5, 1); // no evaluation
    curves_add(&h, "val_loss", 7, 1);
    curves_add(&h, "zeroshot_top1", 9, 1);
    EXPECT(evaluation_next(&h, -1) == 3 && evaluation_next(&h, 3) == 7 && evaluation_next(&h, 7) == 9);
    EXPECT(isinf(evaluation_next(&h, 9)));
    curves_free(&h);
}

static void test_metrics_that_decide_are_those_of_the_first_sets(void) {
    static ZeroshotSet zeroshot[2];
    static ValidationSet val[1];
    Monitor *m = (Monitor *)calloc_check(1, sizeof *m);
    Options o;
    memset(&o, 0, sizeof o);
    o.val_frequency = o.zeroshot_frequency = 1;
    snprintf(val[0].name, sizeof val[0].name, "held");
    for (int i = 0; i < 2; i++) {
        snprintf(zeroshot[i].name, sizeof zeroshot[i].name, "set %d", i);
        zeroshot[i].classnames.count = (size_t)(5 + i);
        zeroshot[i].data.count = 100 + i;
    }
    monitor_name_metrics(m, &o, zeroshot, 2, val, 1);
    EXPECT_STRING(m->val_metric, "val_loss/held");
    EXPECT_STRING(m->best_metric, "zeroshot_top1/set 0");
    EXPECT_STRING(m->facts.val_metric, "val_loss/held");
    EXPECT(m->facts.set_count == 2);
    for (int i = 0; i < 2; i++)
        EXPECT(!strcmp(m->facts.sets[i].name, zeroshot[i].name) && m->facts.sets[i].classes == 5 + i &&
               m->facts.sets[i].samples == 100 + i);
    free(m->sets);
    o.zeroshot_frequency = 0;
    monitor_name_metrics(m, &o, zeroshot, 2, val, 1);
    EXPECT_STRING(m->best_metric, "val_loss/held");
    free(m->sets);
    o.best_metric = "none";
    monitor_name_metrics(m, &o, zeroshot, 0, val, 0);
    EXPECT_STRING(m->best_metric, "");
    free(m->sets);
    free(m);
}

int main(void) {
    RUN(test_captions_are_ranked_by_probability);
    RUN(test_equal_captions_are_kept_once);
    RUN(test_png_is_read_back_as_it_was);
    RUN(test_text_is_escaped_and_base64_is_right);
    RUN(test_best_model_and_patience_follow_the_metric);
    RUN(test_evaluations_follow_each_other);
    RUN(test_metrics_that_decide_are_those_of_the_first_sets);
    RUN(test_report_to_names_trackers);
    return test_report();
}
