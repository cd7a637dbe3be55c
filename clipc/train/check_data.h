// The accounts of all data of a run: the check before the first step, printing them, and --check-data, which
// reads all that a run would, decodes and tokenizes it, and ends.
#ifndef CLIPC_CHECK_DATA_H
#define CLIPC_CHECK_DATA_H

#include "clipc/data/check.h"  // dataset_check
#include "clipc/train/setup.h" // TrainData, EvaluationSets

// Looks at all samples (zeroshot_open() has looked at those of its set); where too few can be used, the
// program ends.
static inline void data_check(const TrainData *d, const EvaluationSets *s) {
    dataset_check(&d->train, NULL, 2);
    for (size_t i = 0; i < s->val_count; i++) dataset_check(&s->val[i].data, NULL, 1);
}

static inline void data_print_accounts(const TrainData *d, const EvaluationSets *s, Logger *log) {
    dataset_print_accounts(&d->train, log);
    for (size_t i = 0; i < s->val_count; i++) dataset_print_accounts(&s->val[i].data, log);
    for (size_t i = 0; i < s->zeroshot_count; i++) dataset_print_accounts(&s->zeroshot[i].data, log);
}

// ---------------------------------------------------------------- --check-data

#define EXIT_PASSED_OVER 3 // something is passed over

// Checks a set and prints its account. *code: the exit code so far, which becomes 2 where nothing can be
// used, else 3 where something is passed over.
static inline void check_data_of(const Dataset *d, const LoaderConfig *loading, Logger *log, int *code) {
    int64_t found = 0, passed_over = 0;
    dataset_check(d, loading, 0);
    dataset_print_accounts(d, log);
    for (size_t s = 0; s < d->source_count; s++) {
        found += d->sources[s].account.found;
        passed_over += d->sources[s].account.passed_over;
    }
    if (found == passed_over) *code = EXIT_USAGE;
    else if (passed_over && *code == EXIT_SUCCESS) *code = EXIT_PASSED_OVER;
}

// Returns the exit code: 0 all is used, 3 something is passed over, 2 nothing of a set can be used.
static inline int check_data_main(Options *o) {
    TrainData data;
    EvaluationSets sets;
    Logger log;
    int code = EXIT_SUCCESS;
    if (!o->train_data && !o->val_data.count && !o->zeroshot_data.count)
        die(EXIT_USAGE, "--check-data: which data? give --train-data, --val-data or --zeroshot-data");
    memset(&data, 0, sizeof data);
    memset(&sets, 0, sizeof sets);
    train_defaults(o);
    Clip *clip = model_open(o);
    logger_open(&log, NULL, false);
    data_set_loading(&data, o, clip);
    sets.how = evaluation_from(o, clip, &data.loading, &log);
    if (o->train_data) {
        const DatasetConfig config = data_config(&data, o);
        data.train = dataset_open(o->train_data, &config, 1);
        loader_check_captions(&data.train, &data.loading);
        data_open_prompts(&data, o);
        check_data_of(&data.train, &data.loading, &log, &code);
    }
    sets_open(&sets, o);
    for (size_t i = 0; i < sets.val_count; i++)
        check_data_of(&sets.val[i].data, &sets.how.loader, &log, &code);
    for (size_t i = 0; i < sets.zeroshot_count; i++)
        check_data_of(&sets.zeroshot[i].data, &sets.how.loader, &log, &code);
    sets_free(&sets);
    data_free(&data);
    logger_close(&log);
    clip_free(clip);
    return code;
}

#endif
