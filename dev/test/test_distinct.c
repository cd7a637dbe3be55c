// Checks the keys of false negatives, and the steps in which no key occurs twice (order.h, sample.h,
// dataloader.h), on files that it makes in a temporary folder.
#include "dev/test/mixed.h"

// ---------------------------------------------------------------- keys

// Are the keys of samples i and k equal?
static bool same_key(const Dataset *d, int64_t i, int64_t k) { return d->keys[i] == d->keys[k]; }

static void test_keys_are_equal_for_false_negatives(void) {
    DatasetConfig c = dataset_config_default();
    const char *const kinds[] = {NULL, "image", "cls", "group"};
    static Seen seen;
    for (int kind = 0; kind < 4; kind++) {
        c.positives_key = kinds[kind];
        Dataset d = dataset_open(mixed, &c, 2), lazy = dataset_open(mixed, &c, 2);
        LoaderConfig lc = loader_config(2);
        dataset_read_keys(&d);
        run_epoch(&seen, &lazy, &lc, 0, 0, 7); // found at the start or when read: the same
        for (int i = 0; i < seen.count; i++) EXPECT(seen.keys[i] == d.keys[seen.indices[i]]);
        int64_t pairs = 0;
        for (int64_t i = 0; i < d.count; i++)
            for (int64_t k = 0; k < i; k++) pairs += same_key(&d, i, k);
        if (kind == 0) { // rows 2r, 2r + 1 and member r, whatever the case and white space
            EXPECT(same_key(&d, 0, 1) && same_key(&d, 1, CSV) && !same_key(&d, 1, 2) &&
                       same_key(&d, 28, CSV + 14) && pairs == 15 * 3,
                "%d", (int)pairs);
        } else if (kind == 1) {
            EXPECT(pairs == 0);
        } else if (kind == 2) { // 30 rows of 7 classes and 20 members of 4
            int64_t of[7] = {0}, wanted = 0;
            for (int i = 0; i < CSV; i++) of[i % 7]++;
            for (int i = 0; i < TAR; i++) of[i % 4]++;
            for (int i = 0; i < 7; i++) wanted += of[i] * (of[i] - 1) / 2;
            EXPECT(same_key(&d, 0, 7) && same_key(&d, 3, CSV + 3) && pairs == wanted, "%d of %d", (int)pairs,
                (int)wanted);
        } else { // 24 rows with a text: 8 none, 16 some; the others have unique keys
            EXPECT(pairs == 8 * 7 / 2 + 16 * 15 / 2 && same_key(&d, 0, 3) && !same_key(&d, 4, 9), "%d",
                (int)pairs);
        }
        dataset_free(&d);
        dataset_free(&lazy);
    }
    write_text(at("twice.csv"),
        // one image with two captions
        "filepath,title,label\nm/1.png,a,dog\nm/1.png,b,cat\nm/2.png,A,dog\n");
    c.positives_key = "image";
    Dataset d = dataset_open(at("twice.csv"), &c, 2);
    dataset_read_keys(&d);
    EXPECT(same_key(&d, 0, 1) && !same_key(&d, 0, 2));
    dataset_free(&d);
    c.positives_key = "cls"; // names that no list holds
    d = dataset_open(at("twice.csv"), &c, 2);
    dataset_read_keys(&d);
    EXPECT(same_key(&d, 0, 2) && !same_key(&d, 0, 1));
    dataset_free(&d);
    EXPECT(key_of_caption(" A  cat\n", 8) == key_of_caption("a cat", 5) &&
           key_of_caption("a cat", 5) != key_of_caption("acat", 4));
    EXPECT(key_of_caption("a", 1) != key_of_caption("b", 1));
}

// Keys belong to a list of samples: those of before a split are gone, and new ones are right for both parts.
static void test_split_takes_the_keys_away(void) {
    DatasetConfig c = dataset_config_default();
    Dataset d = dataset_open(mixed, &c, 2);
    dataset_read_keys(&d);
    Dataset held = dataset_split(&d, 0.4, 1), *parts[] = {&d, &held};
    SampleBuffers b = {0};
    EXPECT(!d.keys && !held.keys);
    for (int p = 0; p < 2; p++) {
        dataset_read_keys(parts[p]);
        for (int64_t i = 0; i < parts[p]->count; i++)
            EXPECT(dataset_read(parts[p], i, &b) == SAMPLE_OK &&
                   parts[p]->keys[i] == key_of_caption(b.caption, b.caption_bytes));
    }
    sample_buffers_free(&b);
    dataset_free(&held);
    dataset_free(&d);
}

static void test_false_negatives_are_counted(void) {
    uint64_t keys[2][4] = {{1, 2, 3, 2}, {2, 9, 3, 0}};
    Batch b[2];
    memset(b, 0, sizeof b);
    b[0].keys = keys[0];
    b[0].count = 4;
    b[1].keys = keys[1];
    b[1].count = 3;
    EXPECT(batch_false_negatives(b, 1) == 2 && batch_false_negatives(b + 1, 1) == 0);
    EXPECT(batch_false_negatives(b, 2) == 3 * 2 + 2, "%d",
        (int)batch_false_negatives(b, 2)); // 2 occurs three times, 3 twice
    b[0].count = b[1].count = 0;
    EXPECT(batch_false_negatives(b, 2) == 0);
}

// ---------------------------------------------------------------- distinct steps

static bool all_differ(const uint64_t *keys, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < i; k++)
            if (keys[i] == keys[k]) return false;
    return true;
}

// Random keys: the most steps that there can be, each with different keys, and nothing lost.
static void test_distinct_order_has_no_key_twice_in_a_step(void) {
    enum { MOST = 200 };
    DatasetConfig c = dataset_config_default();
    for (int round = 0; round < 300; round++) {
        Rand r = rand_for(1, (uint64_t)round, 0);
        const int64_t n = 2 + (int64_t)rand_below(&r, MOST - 2);
        const int64_t step = 1 + (int64_t)rand_below(&r, 20);
        const int64_t kinds = 1 + (int64_t)rand_below(&r, (uint64_t)n);
        int64_t order[MOST], other[MOST], of[MOST] = {0}, most = 0;
        c.num_samples = n;
        Dataset d = dataset_open("synthetic", &c, 2);
        d.keys = (uint64_t *)malloc_check((size_t)n * sizeof *d.keys);
        for (int64_t i = 0; i < n; i++) {
            d.keys[i] = rand_below(&r,
                round % 3 ? (uint64_t)kinds
                          : 1 + rand_below(&r, (uint64_t)kinds)); // as likely, or some far more than others
            of[d.keys[i]]++;
        }
        for (int64_t K = 1; K * step <= n; K++) {
            int64_t sum = 0;
            for (int64_t k = 0; k < kinds; k++) sum += min_i64(of[k], K);
            if (sum >= K * step) most = K;
        }
        dataset_order(&d, 7, round, true, order);
        const int64_t K = order_make_distinct(&d, 7, round, step, order, n);
        EXPECT(
            K == most && dataset_distinct_steps(&d, 7, step) == most, "%d instead of %d", (int)K, (int)most);
        uint64_t keys[MOST];
        bool hit[MOST] = {false};
        for (int64_t p = 0; p < n; p++) {
            keys[p] = d.keys[order[p]];
            hit[order[p]] = true;
        }
        for (int64_t p = 0; p < n; p++) EXPECT(hit[p]);
        for (int64_t k = 0; k < K; k++)
            EXPECT(all_differ(keys + k * step, step), "step %d of %d", (int)k, (int)K);
        dataset_order(&d, 7, round + 1, true, other);
        order_make_distinct(&d, 7, round + 1, step, other, n);
        if (n > 20) EXPECT(memcmp(order, other, (size_t)n * sizeof *order));
        dataset_free(&d);
    }
    c.num_samples = 100; // a caption that 60 of 100 have: they take turns, none of the others is lost
    Dataset d = dataset_open("synthetic", &c, 2);
    d.keys = (uint64_t *)malloc_check(100 * sizeof *d.keys);
    int64_t order[100], seen[100] = {0}, never = 0;
    for (int i = 0; i < 100; i++) d.keys[i] = i < 60 ? 0 : (uint64_t)i;
    for (int epoch = 0; epoch < 100; epoch++) {
        dataset_order(&d, 1, epoch, true, order);
        EXPECT(order_make_distinct(&d, 1, epoch, 5, order, 100) == 10);
        for (int p = 0; p < 50; p++) seen[order[p]]++;
    }
    for (int i = 60; i < 100; i++) EXPECT(seen[i] == 100);
    for (int i = 0; i < 60; i++) never += !seen[i];
    EXPECT(never == 0 && seen[0] < 40, "%d never, %d", (int)never, (int)seen[0]);
    dataset_free(&d);
}

// The two samples of a key go to any two steps, not always to neighbours.
static void test_samples_of_a_key_are_spread(void) {
    DatasetConfig c = dataset_config_default();
    c.num_samples = 100;
    Dataset d = dataset_open("synthetic", &c, 2);
    d.keys = (uint64_t *)malloc_check(100 * sizeof *d.keys);
    int64_t order[100], at[2] = {0, 0}, neighbours = 0;
    for (int i = 0; i < 100; i++) d.keys[i] = i < 2 ? 0 : (uint64_t)i;
    for (int epoch = 0; epoch < 100; epoch++) {
        dataset_order(&d, 1, epoch, true, order);
        EXPECT(order_make_distinct(&d, 1, epoch, 5, order, 100) == 20);
        for (int p = 0; p < 100; p++)
            if (order[p] < 2) at[order[p]] = p / 5;
        neighbours += at[0] - at[1] == 1 || at[1] - at[0] == 1;
    }
    EXPECT(neighbours > 0 && neighbours < 30, "%d of 100, 10 are expected", (int)neighbours);
    dataset_free(&d);
}

// Of 3 x SHUFFLE_BUFFER entries in shards: each comes once, and each shard comes first in some epoch.
static void test_shards_are_shuffled_before_their_samples(void) {
    enum { SHARDS = 6, SHARD = SHUFFLE_BUFFER / 2, N = SHARDS * SHARD };
    DatasetConfig c = dataset_config_default();
    c.num_samples = N;
    Dataset d = dataset_open("synthetic", &c, 2);
    int64_t *order = (int64_t *)malloc_check(N * sizeof *order);
    bool first[SHARDS] = {false};
    for (int i = 0; i < N; i++) d.samples[i].file = i / SHARD;
    for (int seed = 0; seed < 40; seed++) {
        Rand r = rand_for(3, (uint64_t)seed, 0);
        int turn[SHARDS], turns = 0;
        bool *seen = (bool *)calloc_check(N, 1), begun[SHARDS] = {false};
        for (int i = 0; i < N; i++) order[i] = i;
        source_shuffle(&d, &r, true, order, N);
        for (int i = 0; i < N; i++) {
            const int shard = (int)order[i] / SHARD;
            EXPECT(!seen[order[i]]);
            seen[order[i]] = true;
            if (!begun[shard]) turn[turns++] = shard;
            begun[shard] = true;
        }
        EXPECT(turns == SHARDS);
        first[turn[0]] = true;
        free(seen);
    }
    for (int i = 0; i < SHARDS; i++) EXPECT(first[i], "shard %d never comes first", i);
    free(order);
    dataset_free(&d);
}

static void no_step_case(const void *argument) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open((const char *)argument, &dc, 2);
    LoaderConfig c = loader_config(2);
    c.batch_size = 2;
    c.distinct_step = 4;
    dataset_read_keys(&d);
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    loader_start_epoch(l, 0, 0);
    for (int i = 0; i < 2; i++) loader_next(l, &b);
}

// Through the loader, with two batches a step and broken samples between: their places go to the next, but
// never to one of the same key.
static void test_distinct_batches_survive_broken_samples(void) {
    FILE *f = fopen_check(at("m/d.csv"), "w");
    fprintf(f, "filepath,title\n");
    for (int i = 0; i < 120; i++)
        fprintf(f, "%d.png,caption %d\n", i % 9 == 5 ? 999 : i % CSV, i % 4 ? i / 3 : i % 3);
    fclose(f);
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(at("m/d.csv"), &dc, 2);
    static Seen seen;
    LoaderConfig c = loader_config(2);
    c.batch_size = 6;
    c.distinct_step = 12;
    dataset_read_keys(&d);
    const int steps = (int)dataset_distinct_steps(&d, c.seed, 12);
    EXPECT(steps >= 5 && steps <= 10, "%d", steps);
    for (int64_t epoch = 0; epoch < 8; epoch++) {
        run_epoch(&seen, &d, &c, epoch, 0, 2 * steps);
        EXPECT(seen.count == 12 * steps);
        for (int k = 0; k < steps; k++) EXPECT(all_differ(seen.keys + 12 * k, 12), "step %d", k);
    }
    expect_reproducible(&d, c, 3, 2 * steps, 2);
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    run_epoch(&seen, &d, &c, 4, 0, 1);
    loader_start_epoch(l, 3, 0); // an epoch given up in the middle of a step leaves no keys
    loader_next(l, &b);
    loader_start_epoch(l, 4, 0);
    EXPECT(loader_next(l, &b) == 6 && !memcmp(b.indices, seen.indices, 6 * sizeof *b.indices));
    batch_free(&b);
    loader_free(l);
    c.distinct_step = 0;
    run_epoch(&seen, &d, &c, 0, 0, 2 * steps);
    int met = 0;
    for (int k = 0; k < steps; k++) met += !all_differ(seen.keys + 12 * k, 12);
    EXPECT(met > 0); // without it they do meet
    dataset_free(&d);

    dc.upsampling_factors = "1::2.5::1"; // the same sample again is its own false negative
    d = dataset_open(mixed, &dc, 2);
    c.distinct_step = 12;
    dataset_read_keys(&d);
    const int upsampled = (int)dataset_distinct_steps(&d, c.seed, 12);
    EXPECT(upsampled >= 5 && upsampled <= 7, "%d", upsampled);
    for (int64_t epoch = 0; epoch < 4; epoch++) {
        run_epoch(&seen, &d, &c, epoch, 0, 2 * upsampled);
        for (int k = 0; k < upsampled; k++) EXPECT(all_differ(seen.keys + 12 * k, 12), "step %d", k);
    }
    dataset_free(&d);
    write_text(at("m/few.csv"), "filepath,title\n0.png,a\n1.png,b\n2.png,c\n3.png,A\n99.png,d\n");
    EXPECT_REFUSED(no_step_case, at("m/few.csv"), "fewer than 4 different keys");
}

int main(void) {
    make_mixed_folder("test_distinct");
    RUN(test_keys_are_equal_for_false_negatives);
    RUN(test_split_takes_the_keys_away);
    RUN(test_false_negatives_are_counted);
    RUN(test_distinct_order_has_no_key_twice_in_a_step);
    RUN(test_samples_of_a_key_are_spread);
    RUN(test_shards_are_shuffled_before_their_samples);
    RUN(test_distinct_batches_survive_broken_samples);
    remove_mixed_folder();
    return test_report();
}
