// metrics.jsonl: curves, advice, the page of a run, and the file that a resumed run goes on with.
#include "dev/fuzz/fuzz.h"

#include "clipc/train/report.h"

static void fuzz_one(const uint8_t *data, size_t size) {
    static const AdviceSet sets[] = {{"", 10, 2000}, {"general", 100, 2000}};
    const AdviceFacts facts = {32, 100, 10, true, false, "val_loss", sets, 2, false, "--lock-image"};
    if (size < 1) return;
    const char *path = fuzz_file(data + 1, size - 1);
    ReportGrid grid;
    Report r;
    memset(&grid, 0, sizeof grid);
    memset(&r, 0, sizeof r);
    r.name = r.model = r.status = "a run";
    r.settings = "lr 1\nbatch-size 2\n";
    r.metrics = path;
    r.curves = "/dev/null";
    r.steps_per_epoch = 1 + (data[0] & 15);
    r.facts = &facts;
    r.grid = &grid;
    plot_curves(path, "curves.svg");
    report_write("report.html", &r);
    metrics_cut(path, data[0]);
}
