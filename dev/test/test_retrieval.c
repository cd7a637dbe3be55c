// Retrieval where images have several captions: ranks and metrics against their definition, which samples
// have the same image, and the encoding of every image once. With a file of test_retrieval.py as argument:
// prints the metrics of its cases instead.
//     test_retrieval [CASES]
#include "clipc/train/validation.h"

#include "dev/test/child.h"
#include "dev/test/data_files.h"
#include "dev/test/features.h"

// ---------------------------------------------------------------- ranks against the definition

enum { MOST = 60, E = 5 }; // images and captions; scores of small integers tie often, and are exact

typedef struct {
    float image[MOST * E], text[MOST * E];
    int image_group[MOST], text_group[MOST];
    RetrievalSet set;
} Case;

// Random groups, each with at least one image and one caption. several_images: not only one image a group.
static void make_case(Case *c, uint64_t seed, bool several_images) {
    Rand r = rand_for(seed, 0x67726f757073, 0);
    const int groups = 1 + (int)rand_below(&r, 20);
    const int M = several_images ? groups + (int)rand_below(&r, MOST - 20) : groups;
    const int N = groups + (int)rand_below(&r, MOST - 20);
    for (int i = 0; i < MOST * E; i++) {
        c->image[i] = (float)rand_below(&r, 3) - 1;
        c->text[i] = (float)rand_below(&r, 3) - 1;
    }
    for (int i = 0; i < M; i++) c->image_group[i] = i < groups ? i : (int)rand_below(&r, (uint64_t)groups);
    for (int i = 0; i < N; i++) c->text_group[i] = i < groups ? i : (int)rand_below(&r, (uint64_t)groups);
    for (int i = N - 1; i > 0; i--) { // COCO's captions are not sorted by image
        const int j = (int)rand_below(&r, (uint64_t)i + 1), t = c->text_group[i];
        c->text_group[i] = c->text_group[j];
        c->text_group[j] = t;
    }
    const RetrievalSet set = {c->image, c->text, c->image_group, c->text_group, M, N, E};
    c->set = set;
}

// The definition: sorted by score, in a tie by index, the first candidate of the query's group has this rank.
static int naive_rank(const float *query, int group, const float *candidates, const int *groups, int n) {
    int best = n;
    for (int t = 0; t < n; t++) {
        if (groups[t] != group) continue;
        int rank = 0;
        const double target = dot(query, candidates + t * E, E);
        for (int j = 0; j < n; j++) {
            const double score = dot(query, candidates + j * E, E);
            rank += score > target || (score == target && j < t);
        }
        best = rank < best ? rank : best;
    }
    return best;
}

static void test_ranks_of_random_groups_match_the_definition(const Kernels *kernels) {
    static const int chunks[] = {0, 1, 7, 16, 59, 4096};
    int ranks[2 * MOST], wrong = 0;
    Case c;
    for (uint64_t seed = 0; seed < 200; seed++) {
        make_case(&c, seed, seed % 2);
        const RetrievalSet *s = &c.set;
        group_ranks(kernels, ranks, ranks + s->M, s, chunks[seed % 6]);
        for (int i = 0; i < s->M; i++)
            wrong +=
                ranks[i] != naive_rank(s->image + i * E, s->image_group[i], s->text, s->text_group, s->N);
        for (int j = 0; j < s->N; j++)
            wrong += ranks[s->M + j] !=
                     naive_rank(s->text + j * E, s->text_group[j], s->image, s->image_group, s->M);
        EXPECT(!wrong, "grouping %d: %d ranks are wrong", (int)seed, wrong);
    }
}

// Features at which any rounding or order of sums would show.
static void test_ranks_of_groups_do_not_depend_on_the_chunk(const Kernels *kernels) {
    enum { M = 77, N = 301, D = 37 };
    float *image = (float *)malloc_check(M * D * sizeof(float)),
          *text = (float *)malloc_check(N * D * sizeof(float));
    int image_group[M], text_group[N], whole[M + N], parts[M + N];
    fill_normal(image, M * D, 5);
    fill_normal(text, N * D, 6);
    for (int i = 0; i < M; i++) image_group[i] = i;
    for (int j = 0; j < N; j++) text_group[j] = j * 30 % M; // 30 and 77 have no common factor
    for (int j = 200; j < N; j++) memcpy(text + j * D, text + (j - 100) * D, D * sizeof(float));
    const RetrievalSet s = {image, text, image_group, text_group, M, N, D};
    group_ranks(kernels, whole, whole + M, &s, 0);
    for (int chunk = 1; chunk < N; chunk += chunk < 10 ? 1 : 67) {
        group_ranks(kernels, parts, parts + M, &s, chunk);
        EXPECT(memcmp(whole, parts, sizeof whole) == 0, "chunk %d", chunk);
    }
    free(image);
    free(text);
}

static void test_perfect_model_finds_all_captions(const Kernels *kernels) {
    enum { M = 12, EACH = 5, D = 16 };
    float image[M * D], text[M * EACH * D];
    int image_group[M], text_group[M * EACH];
    fill_normal(image, M * D, 1);
    normalise_rows(image, M, D);
    for (int i = 0; i < M; i++) image_group[i] = i;
    for (int j = 0; j < M * EACH; j++) {
        text_group[j] = j % M;
        memcpy(text + j * D, image + j % M * D, D * sizeof(float));
    }
    const RetrievalSet s = {image, text, image_group, text_group, M, M * EACH, D};
    const RetrievalMetrics m = group_metrics(kernels, &s, 7);
    EXPECT(m.image_to_text.R1 == 1 && m.text_to_image.R1 == 1 && mean_recall(&m) == 1, "%g, %g",
        m.image_to_text.R1, m.text_to_image.R1);
    EXPECT(m.image_to_text.mean_rank == 1 && m.text_to_image.median_rank == 1, "ranks");
}

static void test_not_a_number_finds_nothing(const Kernels *kernels) {
    int ranks[2 * MOST];
    Case c;
    make_case(&c, 1, true);
    const RetrievalSet *s = &c.set;
    for (int e = 0; e < E; e++)
        c.text[3 * E + e] = NAN; // a caption that would be first in any sorting by NaN
    group_ranks(kernels, ranks, ranks + s->M, s, 16);
    EXPECT(ranks[s->M + 3] == s->M - 1, "%d", ranks[s->M + 3]);
    for (int i = 0; i < s->M; i++) EXPECT(ranks[i] >= 1, "the caption counts against image %d", i);
    for (int i = 0; i < MOST * E; i++) c.image[i] = NAN;
    const RetrievalMetrics m = group_metrics(kernels, s, 16);
    EXPECT(m.image_to_text.R1 == 0 && m.text_to_image.R1 == 0, "a broken model finds nothing");
}

static void group_without_captions(const void *unused) {
    (void)unused;
    static const float x[2 * E];
    static const int images[2] = {0, 1}, texts[1] = {0};
    const RetrievalSet s = {x, x, images, texts, 2, 1, E};
    int ranks[3];
    group_ranks(kernels_select(), ranks, ranks + 2, &s, 0);
}

// ---------------------------------------------------------------- which samples have the same image

static void expect_groups(const Dataset *d, const char *images, const char *groups) {
    ImageGroups g = image_groups(d);
    for (int i = 0; i < (int)d->count; i++)
        EXPECT(g.image_of[i] == images[i] - '0' && g.group_of[i] == groups[i] - '0',
            "sample %d: image %d, group %d", i, g.image_of[i], g.group_of[i]);
    for (int i = 0; i < g.images; i++) EXPECT(g.image_of[g.first[i]] == i, "image %d", i);
    image_groups_free(&g);
}

static void test_samples_are_grouped_by_image_or_key(void) {
    write_text(at("t.csv"), "filepath,title,product,label\na.png,1,x,5\nb.png,2,y,5\na.png,3,x,6\nc.png,4,y,"
                            "7\n,5,,\nb.png,6,,\n");
    DatasetConfig c = dataset_config_default();
    c.validation = true;
    Dataset d = dataset_open(at("t.csv"), &c, 2);
    expect_groups(&d, "010231", "010231");
    EXPECT_CLOSE(images_met_again(&d, 3), 4.0 / 6 * 2 / 5, 1e-12);
    dataset_free(&d);
    c.positives_key = "product"; // b and c are images of product y; the last b has none
    d = dataset_open(at("t.csv"), &c, 2);
    expect_groups(&d, "010234", "010123");
    dataset_free(&d);
    c.positives_key = "cls";
    d = dataset_open(at("t.csv"), &c, 2);
    expect_groups(&d, "012345", "001234");
    dataset_free(&d);
    c.positives_key = "caption"; // is about training
    d = dataset_open(at("t.csv"), &c, 2);
    expect_groups(&d, "010231", "010231");
    dataset_free(&d);
    OpenCase o = {at("t.csv"), c, 2};
    o.config.positives_key = "none";
    EXPECT(child_run(open_case, &o) == 0 && strstr(child.text, "no column 'none' of --positives-key"), "%s",
        child.text);
    o.config.validation = false;
    EXPECT_REFUSED(open_case, &o, "--positives-key");
    struct archive *a;
    tar_plain(at("t.tar"), &a);
    for (int i = 0; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d.png", i);
        tar_add_text(a, name, "x");
        snprintf(name, sizeof name, "%d.txt", i);
        tar_add_text(a, name, "y");
    }
    tar_finish(a);
    c.positives_key = "product"; // a shard has no columns
    d = dataset_open(at("t.tar"), &c, 2);
    expect_groups(&d, "0123", "0123");
    dataset_free(&d);
}

// ---------------------------------------------------------------- evaluation

enum { SIZE = 5, CONTEXT = 12, WIDTH = 4 };

struct Backend {
    int images, texts; // encoded so far
};

// An image is its mean colour; a caption is a feature of its second token.
void clip_encode_image(Clip *clip, const ClipBatch *batch, float *features) {
    clip->back->images += batch->size;
    for (int i = 0; i < batch->size; i++) {
        for (int e = 0; e < WIDTH; e++) features[i * WIDTH + e] = 1e-3f;
        for (int j = 0; j < 3 * SIZE * SIZE; j++)
            features[i * WIDTH + j / (SIZE * SIZE)] += batch->pixels[i * 3 * SIZE * SIZE + j];
        normalise_rows(features + i * WIDTH, 1, WIDTH);
    }
}

void clip_encode_text(Clip *clip, const ClipBatch *batch, float *features) {
    clip->back->texts += batch->size;
    for (int i = 0; i < batch->size; i++) {
        fill_normal(features + i * WIDTH, WIDTH, (uint64_t)batch->tokens[i * CONTEXT + 1]);
        normalise_rows(features + i * WIDTH, 1, WIDTH);
    }
}

float clip_logit_scale(const Clip *clip) { return clip->back ? 20 : 0; }

static Evaluation evaluation_of(Clip *clip, struct Backend *back, const Tokenizer *tokenizer) {
    Evaluation e;
    memset(&e, 0, sizeof e);
    memset(clip, 0, sizeof *clip);
    memset(back, 0, sizeof *back);
    clip->back = back;
    clip->config.embed_dim = WIDTH;
    clip->config.context_length = CONTEXT;
    clip->config.image_size = SIZE;
    e.clip = clip;
    e.kernels = kernels_select();
    e.loader = small_batches(2, SIZE, NULL);
    e.loader.batch_size = 7;
    e.loader.context = CONTEXT;
    e.loader.tokenizer = tokenizer;
    e.loader.one_pass = true;
    e.loader.shuffle = false;
    return e;
}

// 6 images with 4 captions each, in an order that mixes them; 16 is a missing file, and caption 5 is empty.
static void write_pairs(const char *path, bool column) {
    static uint8_t png[4096];
    char name[64];
    FILE *f = fopen_check(path, "w");
    fprintf(f, "filepath,title%s\n", column ? ",own" : "");
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "p%d.png", i);
        if (i != 2) write_file(at(name), png, make_png(png, sizeof png, 40 * i + 1, 8, 8));
    }
    for (int j = 0; j < 24; j++) {
        fprintf(f, "p%d.png,%s%.*s", j * 5 % 6, j == 5 ? "" : "word ", j == 5 ? 0 : 1,
            &"abcdefghijklmnopqrstuvwx"[j]);
        if (column) fprintf(f, ",%d", j);
        fprintf(f, "\n");
    }
    fclose(f);
}

static void test_every_image_is_encoded_once(const Tokenizer *tokenizer) {
    Clip clip;
    struct Backend back;
    Evaluation e = evaluation_of(&clip, &back, tokenizer);
    ValidationMetrics grouped, single;
    DatasetConfig c = dataset_config_default();
    c.validation = true;
    write_pairs(at("pairs.csv"), true);
    Dataset d = dataset_open(at("pairs.csv"), &c, 2);
    EXPECT(evaluate_validation(&e, &d, at("f.safetensors"), &grouped), "it runs through");
    EXPECT(back.images == 5 && back.texts == 19, "%d images, %d captions", back.images, back.texts);
    EXPECT(grouped.images == 5 && grouped.samples == 19, "%d images, %d pairs", (int)grouped.images,
        (int)grouped.samples);
    dataset_free(&d);
    c.positives_key = "own"; // each pair by itself: an image of each, encoded with its caption
    d = dataset_open(at("pairs.csv"), &c, 2);
    EXPECT(evaluate_validation(&e, &d, at("s.safetensors"), &single), "it runs through");
    EXPECT(back.images == 5 + 19 && single.images == 19 && single.samples == 19, "%d images", back.images);
    EXPECT(single.loss == grouped.loss, "the loss is that of the pairs: %.17g, %.17g", single.loss,
        grouped.loss);
    EXPECT(grouped.retrieval.image_to_text.R1 >= single.retrieval.image_to_text.R1 &&
               grouped.retrieval.image_to_text.mean_rank < single.retrieval.image_to_text.mean_rank,
        "any caption of an image is right");
    dataset_free(&d);
    size_t bytes[2];
    char *files[2] = {file_read_all(at("f.safetensors"), &bytes[0]), NULL};
    files[1] = file_read_all(at("s.safetensors"), &bytes[1]);
    EXPECT(bytes[0] == bytes[1] && !memcmp(files[0], files[1], bytes[0]),
        "features of the pairs, in their order");
    free(files[0]);
    free(files[1]);
}

// ---------------------------------------------------------------- cases of test_retrieval.py

// CASES: for each case 4 int32 (M, N, E, chunk), the groups of images and captions (int32), the features
// (float32). A line with 11 numbers for each.
static int print_cases(const char *path) {
    size_t bytes, at_byte = 0;
    char *data = file_read_all(path, &bytes);
    while (at_byte < bytes) {
        const int32_t *head = (const int32_t *)(void *)(data + at_byte);
        const int M = head[0], N = head[1], D = head[2];
        const float *features = (const float *)(const void *)(head + 4 + M + N);
        const RetrievalSet s = {features, features + (size_t)M * (size_t)D, head + 4, head + 4 + M, M, N, D};
        const RetrievalMetrics m = group_metrics(kernels_select(), &s, head[3]);
        const RankMetrics *both[2] = {&m.image_to_text, &m.text_to_image};
        for (int i = 0; i < 2; i++)
            printf("%.17g %.17g %.17g %.17g %.17g ", both[i]->mean_rank, both[i]->median_rank, both[i]->R1,
                both[i]->R5, both[i]->R10);
        printf("%.17g\n", mean_recall(&m));
        at_byte += 4 * (4 + (size_t)M + (size_t)N + ((size_t)M + (size_t)N) * (size_t)D);
    }
    free(data);
    return 0;
}

int main(int argc, char **argv) {
    char error[256];
    if (argc > 1) return print_cases(argv[1]);
    make_test_folder("test_retrieval");
    EXPECT_ASSERT(group_without_captions, NULL, "of_image.index[i] >= 0"); // children first: see child.h
    RUN(test_samples_are_grouped_by_image_or_key);
    Tokenizer *tokenizer = tokenizer_create(tokenizer_builtin_merges, tokenizer_builtin_merges_length, error);
    if (!tokenizer) die(EXIT_RUNTIME, "tokenizer: %s", error);
    const Kernels *all[KERNELS_MOST];
    const int count = kernels_list(all);
    for (int k = 0; k < count; k++) {
        RUN(test_ranks_of_random_groups_match_the_definition, all[k]);
        RUN(test_ranks_of_groups_do_not_depend_on_the_chunk, all[k]);
    }
    RUN(test_perfect_model_finds_all_captions, kernels_select());
    RUN(test_not_a_number_finds_nothing, kernels_select());
    RUN(test_every_image_is_encoded_once, tokenizer);
    tokenizer_free(tokenizer);
    remove_test_folder();
    return test_report();
}
