// report.html, one self-contained page for each run: its results, curves, evaluations with advice, images
// with the captions that the model finds most and least likely, settings. It loads nothing, and is light or
// dark as the reader's system.
//
// A failing page never ends a run: what cannot be written gives a warning and false.
#ifndef CLIPC_REPORT_H
#define CLIPC_REPORT_H

#include "clipc/train/evaluate.h" // Evaluation, ZeroshotSet
#include "clipc/train/monitor.h"  // advice_at, curve_is_evaluation

// ---------------------------------------------------------------- images and captions

enum { REPORT_IMAGES = 12, REPORT_CAPTIONS = 256, REPORT_BEST = 3, REPORT_CAPTION_BYTES = 240 };

typedef struct {
    uint8_t *png; // (png_bytes) the image as the model sees it
    size_t png_bytes;
    int own, rank;         // index of its own caption, and the rank, from 1, that the model gives it
    int best[REPORT_BEST]; // indices of the most likely captions, best first; -1: there are fewer
    double probability[REPORT_BEST]; // of these, by softmax over all captions
    int worst;                       // index of the least likely caption
} ReportImage;

// Images of a set, each compared with the same captions.
typedef struct {
    ReportImage list[REPORT_IMAGES];
    int count;           // of images
    StringList captions; // all different
    int image_size;
    bool classes; // the captions are made from class names
} ReportGrid;

static inline void report_grid_free(ReportGrid *g) {
    for (int i = 0; i < g->count; i++) free(g->list[i].png);
    string_list_free(&g->captions);
    memset(g, 0, sizeof *g);
}

// The index of a caption, which is cut to REPORT_CAPTION_BYTES and added if it is new.
static inline int grid_caption(ReportGrid *g, const char *text, size_t length) {
    char cut[REPORT_CAPTION_BYTES];
    snprintf(cut, sizeof cut, "%.*s", (int)min_i64((int64_t)length, REPORT_CAPTION_BYTES - 1), text);
    for (size_t i = 0; i < g->captions.count; i++)
        if (strcmp(g->captions.list[i], cut) == 0) return (int)i;
    string_list_add(&g->captions, cut);
    return (int)g->captions.count - 1;
}

// Encodes planes (3,S,S) as a PNG file of *bytes in memory, which the caller frees; NULL when that fails.
static inline uint8_t *png_of_planes(const uint8_t *planes, int S, size_t *bytes) {
    const size_t plane = (size_t)S * (size_t)S;
    uint8_t *rgb = (uint8_t *)malloc_check(3 * plane), *out = NULL;
    for (size_t i = 0; i < plane; i++)
        for (size_t c = 0; c < 3; c++) rgb[3 * i + c] = planes[c * plane + i];
    png_image image;
    png_alloc_size_t size = 0;
    memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    image.width = image.height = (png_uint_32)S;
    image.format = PNG_FORMAT_RGB;
    if (png_image_write_to_memory(&image, NULL, &size, 0, rgb, 0, NULL)) {
        out = (uint8_t *)malloc_check(size);
        if (!png_image_write_to_memory(&image, out, &size, 0, rgb, 0, NULL)) {
            free(out);
            out = NULL;
        }
    }
    free(rgb);
    *bytes = size;
    return out;
}

// Reads images, evenly spread over the set, into pixels (REPORT_IMAGES + 1, 3,S,S), and the captions to
// compare them with: those of `classes`, or else of REPORT_CAPTIONS samples.
static inline void grid_read(
    ReportGrid *g, uint8_t *pixels, const LoaderConfig *c, const Dataset *data, const ZeroshotSet *classes) {
    const int64_t n = dataset_count(data);
    const int64_t samples = min_i64(n, REPORT_CAPTIONS);
    const int64_t every = max_i64(1, samples / REPORT_IMAGES);
    const size_t size = 3 * (size_t)c->image.size * (size_t)c->image.size;
    char *caption = NULL;
    size_t capacity = 0;
    SampleBuffers bytes;
    memset(&bytes, 0, sizeof bytes);
    for (size_t i = 0; classes && i < classes->classnames.count; i++) {
        template_fill(&caption, &capacity, classes->templates.list[0], classes->classnames.list[i]);
        string_list_add(
            &g->captions, caption); // also one that is there already: a label is an index into them
    }
    for (int64_t k = 0; k < samples; k++) {
        const bool shown = k % every == 0 && g->count < REPORT_IMAGES;
        if ((classes && !shown) || dataset_read(data, k * n / samples, &bytes) != SAMPLE_OK) continue;
        const int own = classes ? bytes.label : grid_caption(g, bytes.caption, bytes.caption_bytes);
        uint8_t *square = pixels + (size_t)g->count * size;
        int orientation;
        if (!shown || sample_eval_pixels(square, &orientation, &bytes.image, &c->image) != SAMPLE_OK)
            continue;
        ReportImage *p = &g->list[g->count];
        p->own = own;
        p->png = png_of_planes(square, c->image.size, &p->png_bytes);
        g->count += p->png != NULL;
    }
    sample_buffers_free(&bytes);
    free(caption);
}

// Ranks the captions for one image by their logits, scores (captions).
static inline void grid_rank(ReportImage *p, const float *scores, int captions) {
    double sum = 0, most = scores[0];
    p->worst = 0;
    for (int i = 0; i < captions; i++) {
        most = fmax(most, scores[i]);
        if (scores[i] < scores[p->worst]) p->worst = i;
    }
    for (int i = 0; i < captions; i++) sum += exp(scores[i] - most);
    for (int k = 0; k < REPORT_BEST; k++) {
        p->best[k] = -1;
        for (int i = 0; i < captions; i++) {
            bool taken = false;
            for (int j = 0; j < k; j++) taken |= p->best[j] == i;
            if (!taken && (p->best[k] < 0 || scores[i] > scores[p->best[k]])) p->best[k] = i;
        }
        if (p->best[k] >= 0) p->probability[k] = exp(scores[p->best[k]] - most) / sum;
    }
    p->rank = 1 + count_ahead(scores, captions, scores[p->own], p->own);
}

// Encodes the grid's captions into text (captions,E).
static inline void grid_encode_captions(const ReportGrid *g, const Evaluation *e, float *text) {
    const int n = (int)g->captions.count;
    const int T = e->clip->config.context_length;
    const int B = (int)min_i64(n, e->loader.batch_size);
    int *tokens = (int *)malloc_check((size_t)B * (size_t)T * sizeof *tokens);
    for (int first = 0; first < n; first += B) {
        ClipBatch batch = clip_batch((int)min_i64(B, n - first));
        batch.tokens = tokens;
        for (int i = 0; i < batch.size; i++) {
            const char *caption = g->captions.list[first + i];
            tokenizer_encode(
                e->loader.tokenizer, caption, strlen(caption), tokens + (size_t)i * (size_t)T, T);
        }
        encode_texts(e, &batch, text + (size_t)first * (size_t)e->clip->config.embed_dim);
    }
    free(tokens);
}

// What the model finds in images of a set: captioned ones, or labelled ones, whose set is then `classes`. The
// grid is empty where no sample can be read or the model has no tokenizer. Free with report_grid_free().
static inline ReportGrid report_grid(const Evaluation *e, const Dataset *data, const ZeroshotSet *classes) {
    ReportGrid g;
    const int S = e->loader.image.size, E = e->clip->config.embed_dim;
    const size_t size = 3 * (size_t)S * (size_t)S;
    memset(&g, 0, sizeof g);
    g.image_size = S;
    g.classes = classes != NULL;
    if (!e->loader.tokenizer) return g;
    uint8_t *pixels = (uint8_t *)malloc_check((REPORT_IMAGES + 1) * size); // one more: of an image not taken
    grid_read(&g, pixels, &e->loader, data, classes);
    const int n = (int)g.captions.count;
    float *text = (float *)malloc_check((size_t)n * (size_t)E * sizeof *text);
    float *image = (float *)malloc_check(REPORT_IMAGES * (size_t)E * sizeof *image);
    float *scores = (float *)malloc_check((size_t)n * sizeof *scores);
    if (g.count) grid_encode_captions(&g, e, text);
    for (int i = 0; i < g.count; i++) {
        ClipBatch batch = clip_batch(1);
        batch.pixels = pixels + (size_t)i * size;
        encode_images(e, &batch, image);
        zeroshot_logits(e->kernels, scores, image, text, 1, n, E, clip_logit_scale(e->clip));
        grid_rank(&g.list[i], scores, n);
    }
    free(scores);
    free(image);
    free(text);
    free(pixels);
    return g;
}

// ---------------------------------------------------------------- the page

typedef struct {
    const char *name, *model, *status; // the run's name; a line about the model; a line about the progress
    const char *settings;              // as options_print() writes them
    const char *metrics, *curves;      // paths of metrics.jsonl and curves.svg (NULL: none)
    int64_t steps_per_epoch;
    const AdviceFacts *facts;
    const ReportGrid *grid;
    const char *died; // why the run has died, from LossWatch; NULL: it has not
} Report;

// The style sheet, one rule a line.
// clang-format off
static const char REPORT_STYLE[] =
    "<style>\n"
    ":root{color-scheme:light dark;--back:#f4f6f8;--card:#fff;--ink:#1c2128;--soft:#5b6472;"
        "--line:#e6e9ee;--blue:#2563eb;--good:#0d8a5f;--bad:#c2410c;--tint:#e6eefe;--warn:#fff2e3;"
        "--fine:#e5f6ee}\n"
    "@media (prefers-color-scheme:dark){"
        ":root{--back:#080b10;--card:#0f141b;--ink:#e8ebf0;--soft:#98a2b0;--line:#252c36;--blue:#6ea8fe;"
        "--good:#45c99a;--bad:#ff9d5c;--tint:#17263d;--warn:#2d2012;--fine:#10291f}}\n"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--back);color:var(--ink);"
        "font:15px/1.5 system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}\n"
    "main{max-width:1080px;margin:0 auto;padding:40px 20px 64px}"
    "h1{font-size:28px;line-height:1.2;margin:0 0 6px;overflow-wrap:anywhere}"
    "h2{font-size:17px;margin:0 0 14px}\n"
    ".soft{color:var(--soft)}"
    "header p{margin:0}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px 22px;"
        "margin-top:20px}\n"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;"
        "margin-top:24px}"
    ".tile{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:14px 16px}"
    ".tile b{display:block;font-size:26px;line-height:1.3;font-weight:650;"
        "font-variant-numeric:tabular-nums}"
    ".tile span{color:var(--soft);font-size:13px;overflow-wrap:anywhere}"
    ".up{color:var(--good)!important}"
    ".down{color:var(--bad)!important}\n"
    ".advice{background:var(--warn);border-left:4px solid var(--bad)}"
    ".advice p{margin:0}\n"
    ".curves{padding:8px;overflow:auto}"
    ".curves svg{display:block;width:100%;min-width:600px;height:auto;border-radius:10px}\n"
    ".scroll{overflow:auto;max-height:520px}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}"
    "th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:500;text-align:right;"
        "vertical-align:bottom;padding:4px 12px 8px;border-bottom:1px solid var(--line);"
        "white-space:nowrap}"
    "th b{color:var(--ink);font-weight:600}"
    "td{text-align:right;padding:6px 12px;border-bottom:1px solid var(--line);white-space:nowrap}"
    "td.best{color:var(--good);font-weight:650}"
    "td.says{text-align:left;white-space:normal;color:var(--soft);font-size:13px;padding-top:2px;"
        "border-bottom-width:2px}"
    "td.says b{color:var(--bad)}\n"
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:16px}"
    ".image{border:1px solid var(--line);border-radius:12px;overflow:hidden;display:flex;"
        "flex-direction:column}"
    ".image img{width:100%;aspect-ratio:1;object-fit:contain;background:var(--back);display:block}"
    ".crisp img{image-rendering:pixelated}"
    ".image>div{padding:10px 14px 14px;font-size:13px;line-height:1.4}"
    ".own{font-weight:600;font-size:14px;margin:0 0 2px;overflow-wrap:anywhere}"
    ".chip{display:inline-block;border-radius:99px;padding:1px 9px;font-size:12px;background:var(--tint);"
        "color:var(--blue);margin-bottom:8px}"
    ".chip.down{background:var(--warn)}"
    ".chip.up{background:var(--fine)}\n"
    ".bar{position:relative;margin:0 -6px 2px;padding:2px 46px 2px 6px;border-radius:5px;"
        "overflow-wrap:anywhere}"
    ".bar i{position:absolute;inset:0 auto 0 0;background:var(--tint);border-radius:5px;z-index:0}"
    ".bar span{position:relative}"
    ".bar em{position:absolute;right:6px;top:2px;font-style:normal;color:var(--soft);"
        "font-variant-numeric:tabular-nums}"
    ".right span{color:var(--good);font-weight:600}"
    ".worst{margin:6px 0 0;color:var(--soft);overflow-wrap:anywhere}\n"
    "dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:0 28px;margin:0;"
        "font-size:14px}"
    "dl div{display:flex;justify-content:space-between;gap:16px;border-bottom:1px solid var(--line);"
        "padding:4px 0}"
    "dt{color:var(--soft);white-space:nowrap}"
    "dd{margin:0;text-align:right;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}\n"
    "@media print{"
        "body{background:#fff}"
        ".scroll{max-height:none;overflow:visible}"
        ".card,.tile,.image{break-inside:avoid}}\n"
    "</style>\n";
// clang-format on

static inline void html_base64(FILE *f, const uint8_t *data, size_t bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < bytes; i += 3) {
        const size_t left = bytes - i;
        const uint32_t three = (uint32_t)data[i] << 16 | (left > 1 ? (uint32_t)data[i + 1] << 8 : 0) |
                               (left > 2 ? data[i + 2] : 0);
        fputc(digits[three >> 18], f);
        fputc(digits[three >> 12 & 63], f);
        fputc(left > 1 ? digits[three >> 6 & 63] : '=', f);
        fputc(left > 2 ? digits[three & 63] : '=', f);
    }
}

// Text, at most 400 characters; HTML and SVG escape the same ones.
static inline void html_text(FILE *f, const char *text) { svg_text(f, text, 400); }

static inline void html_value(FILE *f, const char *name, double value) {
    char text[32];
    plot_number(text, value, fabs(value), 0, curve_is_share(name));
    fputs(isfinite(value) ? text : "–", f);
}

// ---------------------------------------------------------------- results

// A number with its change since the start.
static inline void html_tile(FILE *f, const char *label, const char *name, double start, double now) {
    const double change = now - start;
    const bool better = curve_falls(name) ? change < 0 : change > 0;
    fputs("<div class=\"tile\"><span>", f);
    html_text(f, label);
    fputs("</span><b>", f);
    html_value(f, name, now);
    fputs("</b>", f);
    if (isfinite(change) && change != 0) {
        fprintf(f, "<span class=\"%s\">%s ", better ? "up" : "down", change > 0 ? "▲" : "▼");
        html_value(f, name, fabs(change));
        fputs("</span>", f);
    }
    fputs("</div>\n", f);
}

static inline void html_tiles(FILE *f, const Curves *h) {
    enum { MOST = 8 };
    static const char *const wanted[] = {
        "zeroshot_top1", "val_loss", "image_to_text_R@1", "text_to_image_R@1"};
    static const char *const labels[] = {"zero-shot", "validation loss", "image→text R@1", "text→image R@1"};
    const Curve *loss = curves_find(h, "loss"), *speed = curves_find(h, "samples_per_second");
    int count = 0;
    fputs("<div class=\"tiles\">\n", f);
    for (int k = 0; k < 4; k++) {
        for (size_t i = 0; i < h->count && count < MOST; i++) {
            const Curve *c = &h->list[i];
            const size_t length = strlen(wanted[k]);
            if (strncmp(c->name, wanted[k], length) != 0 || (c->name[length] && c->name[length] != '/'))
                continue;
            char label[160];
            snprintf(label, sizeof label, "%s%s%s", labels[k], c->name[length] ? " on " : "",
                c->name + length + (c->name[length] == '/'));
            html_tile(f, label, c->name, c->y[0], c->y[c->n - 1]);
            count++;
        }
    }
    if (loss) {
        const size_t window = (size_t)max_i64(1, (int64_t)curve_window(loss->n));
        html_tile(f, "training loss", loss->name, curve_mean(loss, 0, window),
            curve_mean(loss, loss->n - window, loss->n));
    }
    if (speed) html_tile(f, "samples a second", speed->name, NAN, curve_median(speed, 0, speed->n));
    fputs("</div>\n", f);
}

static inline void html_advice(FILE *f, Advice a, const char *text) {
    fprintf(f, "<b>%s:</b> ", advice_name(a));
    html_text(f, text);
}

// ---------------------------------------------------------------- evaluations

// Is this a column of the table? Mean and median ranks say the same as R@k, and the table is wide already.
static inline bool curve_is_column(const char *name) {
    return curve_is_evaluation(name) && !strstr(name, "_rank");
}

// Index of the best value of a curve.
static inline size_t curve_best(const Curve *c) {
    size_t best = 0;
    for (size_t i = 1; i < c->n; i++)
        if (!isfinite(c->y[best]) || (curve_falls(c->name) ? c->y[i] < c->y[best] : c->y[i] > c->y[best]))
            best = i;
    return best;
}

// The first step after `after` at which anything was evaluated; infinity when there is none.
static inline double evaluation_next(const Curves *h, double after) {
    double next = INFINITY;
    for (size_t i = 0; i < h->count; i++)
        for (size_t k = 0; curve_is_evaluation(h->list[i].name) && k < h->list[i].n; k++)
            if (h->list[i].x[k] > after) next = fmin(next, h->list[i].x[k]);
    return next;
}

// A row of the table, and below it the advice at that step.
static inline void html_evaluation(FILE *f, const Report *r, const Curves *h, double step) {
    int columns = 2;
    fprintf(f, "<tr><td>%.0f</td><td>", step);
    fprintf(f, "%.3g</td>", step / (double)r->steps_per_epoch);
    for (size_t i = 0; i < h->count; i++) {
        const Curve *c = &h->list[i];
        if (!curve_is_column(c->name)) continue;
        size_t k = 0;
        while (k < c->n && c->x[k] != step) k++;
        columns++;
        fputs(k < c->n && k == curve_best(c) && c->n > 1 ? "<td class=\"best\">" : "<td>", f);
        if (k < c->n) html_value(f, c->name, c->y[k]);
        fputs("</td>", f);
    }
    fputs("</tr>\n", f);
    char text[ADVICE_SIZE];
    const Advice a = advice_at(text, h, (int64_t)step, r->facts);
    if (a == ADVICE_NONE) return;
    fprintf(f, "<tr><td></td><td class=\"says\" colspan=\"%d\">", columns - 1);
    html_advice(f, a, text);
    fputs("</td></tr>\n", f);
}

static inline void html_evaluations(FILE *f, const Report *r, const Curves *h) {
    double step = evaluation_next(h, -1);
    if (!isfinite(step)) return;
    fputs("<section class=\"card\"><h2>Evaluations</h2><div "
          "class=\"scroll\"><table><thead><tr><th>step</th><th>epoch</th>",
        f);
    for (size_t i = 0; i < h->count; i++) {
        if (!curve_is_column(h->list[i].name)) continue;
        char label[64];
        snprintf(label, sizeof label, "%s", h->list[i].label);
        char *set = strchr(label, '/');
        if (set) *set++ = 0;
        fputs("<th>", f);
        html_text(f, label);
        if (set) {
            fputs("<br><b>", f);
            html_text(f, set);
            fputs("</b>", f);
        }
        fputs("</th>", f);
    }
    fputs("</tr></thead><tbody>\n", f);
    for (; isfinite(step); step = evaluation_next(h, step)) html_evaluation(f, r, h, step);
    fputs("</tbody></table></div></section>\n", f);
}

// ---------------------------------------------------------------- the rest of the page

static inline void html_image(FILE *f, const ReportGrid *g, const ReportImage *p) {
    fputs("<div class=\"image\"><img alt=\"\" src=\"data:image/png;base64,", f);
    html_base64(f, p->png, p->png_bytes);
    fputs("\"><div><p class=\"own\">", f);
    html_text(f, g->captions.list[p->own]);
    fprintf(f, "</p><span class=\"chip %s\">%s rank %d of %zu</span>",
        p->rank == 1   ? "up"
        : p->rank <= 5 ? ""
                       : "down",
        p->rank == 1 ? "✓" : "at", p->rank, g->captions.count);
    for (int k = 0; k < REPORT_BEST && p->best[k] >= 0; k++) {
        fprintf(f, "<div class=\"bar%s\"><i style=\"width:%.1f%%\"></i><span>",
            p->best[k] == p->own ? " right" : "", 100 * p->probability[k]);
        html_text(f, g->captions.list[p->best[k]]);
        fprintf(f, "</span><em>%.0f%%</em></div>", 100 * p->probability[k]);
    }
    fputs("<p class=\"worst\">least likely: ", f);
    html_text(f, g->captions.list[p->worst]);
    fputs("</p></div></div>\n", f);
}

static inline void html_grid(FILE *f, const ReportGrid *g) {
    if (!g->count) return;
    fprintf(f,
        "<section class=\"card\"><h2>What the model finds in images</h2><p class=\"soft\">Each image with "
        "its "
        "own caption, and the most likely of %zu %s, by softmax.</p>"
        "<div class=\"grid%s\">\n",
        g->captions.count, g->classes ? "classes" : "captions of the validation set",
        g->image_size <= 96 ? " crisp" : "");
    for (int i = 0; i < g->count; i++) html_image(f, g, &g->list[i]);
    fputs("</div></section>\n", f);
}

// Copies a file into the page as it is; nothing when it is missing.
static inline void html_insert(FILE *f, const char *path) {
    char block[4096];
    FILE *in = fopen(path, "rb");
    for (size_t n; in && (n = fread(block, 1, sizeof block, in)) > 0;) fwrite(block, 1, n, f);
    if (in) fclose(in);
}

static inline void html_settings(FILE *f, const char *settings) {
    fputs("<section class=\"card\"><h2>Settings</h2><dl>\n", f);
    for (const char *line = settings; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        char name[64], value[512];
        const size_t length = strcspn(line, "\n");
        const size_t word = strcspn(line, " \n");
        const size_t blanks = strspn(line + word, " ");
        snprintf(name, sizeof name, "%.*s", (int)word, line);
        snprintf(value, sizeof value, "%.*s", (int)(length - word - blanks), line + word + blanks);
        fputs("<div><dt>", f);
        html_text(f, name);
        fputs("</dt><dd>", f);
        html_text(f, value);
        fputs("</dd></div>\n", f);
    }
    fputs("</dl></section>\n", f);
}

static inline void html_page(FILE *f, const Report *r, const Curves *h) {
    char text[ADVICE_SIZE];
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
          "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\"><meta "
          "name=\"viewport\" "
          "content=\"width=device-width,initial-scale=1\">\n<title>",
        f);
    html_text(f, r->name);
    fputs("</title>\n", f);
    fputs(REPORT_STYLE, f);
    fputs("</head><body><main>\n<header><h1>", f);
    html_text(f, r->name);
    fputs("</h1><p>", f);
    html_text(f, r->status);
    fputs("</p><p class=\"soft\">", f);
    html_text(f, r->model);
    fputs("</p></header>\n", f);
    html_tiles(f, h);
    double step = -1;
    for (double next; isfinite(next = evaluation_next(h, step));) step = next;
    const Advice a = step < 0 ? ADVICE_NONE : advice_at(text, h, (int64_t)step, r->facts);
    if (a != ADVICE_NONE || r->died) {
        fputs("<section class=\"card advice\"><p>", f);
        html_advice(f, r->died ? ADVICE_RATE : a, r->died ? r->died : text);
        fputs("</p></section>\n", f);
    }
    if (r->curves) {
        fputs("<section class=\"card curves\">", f);
        html_insert(f, r->curves);
        fputs("</section>\n", f);
    }
    html_evaluations(f, r, h);
    html_grid(f, r->grid);
    html_settings(f, r->settings);
    fputs("</main></body></html>\n", f);
}

// Writes the page, aside and then renamed.
static inline bool report_write(const char *path, const Report *r) {
    char part[PATH_SIZE];
    FILE *metrics = fopen(r->metrics, "rb");
    if (!metrics) {
        warn("%s: cannot open (%s); no report", r->metrics, strerror(errno));
        return false;
    }
    Curves history = curves_read(metrics);
    fclose(metrics);
    path_format(part, "%s.part", path);
    FILE *f = file_create(part);
    bool written = f != NULL;
    if (f) {
        html_page(f, r, &history);
        written = !ferror(f);
        written = fclose(f) == 0 && written && rename(part, path) == 0;
    }
    if (!written) warn("%s: cannot write (%s); the run goes on without it", path, strerror(errno));
    if (!written && f) unlink(part);
    curves_free(&history);
    return written;
}

#endif
