// What train_clip does besides training: --eval-only, --classify, --print-schedule.
#ifndef CLIPC_OTHER_USES_H
#define CLIPC_OTHER_USES_H

#include "clipc/train/training.h" // Training, evaluate_sets

// A model to be measured or used, not to be trained.
static inline void train_open_to_evaluate(Training *t, Options *o) {
    memset(t, 0, sizeof *t);
    t->o = o;
    train_defaults(o);
    t->clip = model_open(o);
    model_set_precision(t->clip, o);
    logger_open(&t->folder.log, NULL, false);
    data_set_loading(&t->data, o, t->clip);
    t->sets.how = evaluation_from(o, t->clip, &t->data.loading, &t->folder.log);
}

// --eval-only: measures the model, and writes its features if asked to. Returns the exit code.
static inline int evaluate_main(Options *o) {
    static Training t;
    train_open_to_evaluate(&t, o);
    if (!o->val_data.count && !o->zeroshot_data.count)
        die(EXIT_USAGE, "--eval-only: nothing to evaluate on; give --zeroshot-data or --val-data");
    if (o->save_features && !o->val_data.count)
        die(EXIT_USAGE, "--save-features: saves the features of a validation set; give --val-data");
    sets_open(&t.sets, o);
    print_model(&t.folder.log, t.clip, o);
    train_catch_signals();
    const bool done = evaluate_sets(&t.sets, &t.monitor, &t.state, true, true, false, o->save_features);
    training_free(&t);
    return program_end(done ? EXIT_SUCCESS : EXIT_SIGNAL + train_interrupted);
}

// --classify: prints the likeliest classes of images. Returns the exit code.
static inline int classify_main(Options *o) {
    enum { MOST = 5 };
    static Training t;
    if (!o->classnames)
        die(EXIT_USAGE, "--classify: which classes? give --classnames FILE, one class per line");
    StringList names = classnames_read(o->classnames), templates = templates_read(o->templates);
    train_open_to_evaluate(&t, o);
    train_catch_signals();
    const int code = classify(
        &t.sets.how, (char *const *)o->classify.items, (int)o->classify.count, &names, &templates, MOST);
    string_list_free(&names);
    string_list_free(&templates);
    training_free(&t);
    return program_end(code);
}

// --print-schedule: draws the rate over the run, from the options and the number of samples. Returns the exit
// code.
static inline int print_schedule_main(Options *o) {
    TrainData data;
    Dataset val;
    Schedule s;
    memset(&data, 0, sizeof data);
    memset(&val, 0, sizeof val);
    train_defaults(o);
    if (!o->train_data && !options_was_set(o, steps))
        die(EXIT_USAGE, "--print-schedule: how long is the run? give --steps N, or --train-data");
    if (o->train_data) {
        data_open(&data, o, &val);
        s = data_schedule(&data, o);
    } else s = schedule_from_options(o, o->steps, 0);
    const bool found_later = o->lr == RATE_AUTO;
    if (found_later) s.lr = 1;
    const bool drawn = schedule_draw(&s,
        found_later ? "learning rate, as a share of the one that --lr auto finds" : "learning rate",
        o->print_schedule);
    char text[256];
    schedule_describe(&s, text);
    printf("%s\n", text);
    if (o->val_split > 0) dataset_free(&val);
    data_free(&data);
    return program_end(drawn ? EXIT_SUCCESS : EXIT_RUNTIME);
}

#endif
