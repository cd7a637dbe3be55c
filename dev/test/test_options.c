// Command lines: what is accepted, what is refused and with which message, defaults, --help, the printed
// settings. Each command line is run in a child process, since wrong usage ends the program.
#define PROGRAM_OPTIONS(X)                                                               \
    X(PROGRAM, REAL, min_lr, "min-lr", "1e-7", "(0,inf)", "a row of this program's own") \
    X(PROGRAM, INT, offset, "offset", "-5", "[-10,10]", "a number that may be negative")
#define PROGRAM_GROUPS (~GROUP_BIT(SCHEDULE))
#include "clipc/base/options.h"
#include "dev/test/child.h"

// Splits `line` at spaces, except inside '…', into arguments that follow the program's name.
static int split(char *line, char **argv, int size) {
    int argc = 1;
    argv[0] = (char *)"test_options";
    for (char *p = line; *p && argc < size - 1;) {
        char stop = *p == '\'' ? '\'' : ' ';
        p += stop == '\'';
        argv[argc++] = p;
        while (*p && *p != stop) p++;
        if (*p) *p++ = 0;
        while (*p == ' ') p++;
    }
    argv[argc] = NULL;
    return argc;
}

// Parses a command line and prints the settings; in a child.
static void parse_and_print(const void *line) {
    char copy[4096], *argv[128];
    snprintf(copy, sizeof copy, "%s", (const char *)line);
    Options o;
    options_parse(&o, split(copy, argv, 128), argv);
    options_print(&o, stdout);
    options_free(&o);
    exit(0);
}

// Expects exit code 2 and exactly one line, which begins with the program's name and contains `words`.
static void expect_refused(const char *line, const char *words) {
    const int code = child_run(parse_and_print, line);
    EXPECT(child_refused(words), "%s: exit code %d, '%s' should say '%s' in one line", line, code, child.text,
        words);
    const size_t n = strlen(program_name());
    EXPECT(strncmp(child.text, program_name(), n) == 0 && child.text[n] == ':', "%s: %s", line, child.text);
}

// Expects the line to be accepted and the settings to contain the line "name value", with any number of
// spaces between the two; value NULL: the settings must not contain the name.
static void expect_setting(const char *line, const char *name, const char *value) {
    int code = child_run(parse_and_print, line);
    EXPECT(code == 0, "%s: exit code %d: %s", line, code, child.text);
    size_t n = strlen(name);
    bool found = false;
    for (char *p = child.text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        if (strncmp(p, name, n) || p[n] != ' ') continue;
        char *v = p + n + strspn(p + n, " ");
        found |= !value || (strncmp(v, value, strlen(value)) == 0 && v[strlen(value)] == '\n');
    }
    EXPECT(found == (value != NULL), "%s: %s %s: settings are\n%s", line, name, value ? value : "(absent)",
        child.text);
}

static bool option_is_a_row(const char *name) {
    for (int i = 0; i < OPTION_COUNT; i++)
        if (strcmp(option_rows()[i].name, name) == 0) return true;
    return false;
}

static void test_each_kind_of_option_parses_its_values(void) {
    expect_setting("", "batch-size", "64");
    expect_setting("--batch-size 7", "batch-size", "7");
    expect_setting("--batch-size=7", "batch-size", "7");
    expect_setting("", "max-image-pixels", "25000000");
    expect_setting("--max-image-pixels 1e3", "max-image-pixels", "1000");
    expect_setting("--seed 8999999999999999999", "seed", "8999999999999999999");
    expect_setting("--lr 3.0000000000000004e-05", "lr", "3.0000000000000004e-05");
    expect_setting("--lr .5", "lr", "0.5");
    expect_setting("--lr auto", "lr", "auto");
    expect_setting("--wd +1e-1", "wd", "0.1");
    expect_setting("--offset -7", "offset", "-7");
    expect_setting("--offset=-1", "offset", "-1");
    expect_setting("", "offset", "-5");
    expect_setting("--min-lr 1e-6", "min-lr", "1e-06");
    expect_setting("--image-mean 0.5 .25 0.125", "image-mean", "0.5 0.25 0.125");
    expect_setting("--image-mean=-0.5,.25,0", "image-mean", "-0.5 0.25 0");
    expect_setting("--image-resize-mode squash", "image-resize-mode", "squash");
    expect_setting("--csv-separator \\t", "csv-separator", "\\t");
    expect_setting("--csv-separator tab", "csv-separator", "\\t");
    expect_setting("--csv-separator '\t'", "csv-separator", "\\t");
    expect_setting("--csv-separator ;", "csv-separator", ";");
    expect_setting("--csv-separator=,", "csv-separator", ",");
    expect_setting("--aug-cfg scale=1,1 color_jitter=0.4,0.4,0.4,0.1 --seed 1", "aug-cfg",
        "scale=1,1 color_jitter=0.4,0.4,0.4,0.1");
    expect_setting("--aug-cfg none", "aug-cfg", "none");
    expect_setting("--lock-image", "lock-image", "true");
    expect_setting("--classnames 'my names.txt'", "classnames", "my names.txt");
    expect_setting("--classnames=a=b", "classnames", "a=b");
    expect_setting("--name=--odd", "name", "--odd");
    expect_setting("--train-data -", "train-data", "-");
    expect_setting("--name a\\b", "name", "a\\\\b");
}

static void test_a_list_takes_all_words_and_may_be_repeated(void) {
    expect_setting("--classify a.jpg b.jpg c.jpg --seed 1", "classify", "c.jpg");
    expect_setting("--classify a.jpg b.jpg c.jpg --seed 1", "classify", "a.jpg");
    expect_setting("--zeroshot-data a=x --seed 3 --zeroshot-data b=y", "zeroshot-data", "a=x");
    expect_setting("--zeroshot-data a=x --seed 3 --zeroshot-data=b=y", "zeroshot-data", "b=y");
    expect_refused("--classify", "needs a value");
    expect_refused("--classify --seed 1", "needs a value");
    expect_refused("--zeroshot-data=a b", "does not belong to an option");
}

static void test_options_that_are_not_given_stay_unset(void) {
    const char *unset[] = {"pretrained", "lr", "epochs", "steps", "workers", "image-mean", "csv-separator",
        "aug-cfg", "lock-image", "classify", "name"};
    for (size_t i = 0; i < sizeof unset / sizeof *unset; i++) expect_setting("--seed 1", unset[i], NULL);
    char *argv[] = {(char *)"test_options", (char *)"--beta1", (char *)"0.9", NULL};
    Options o;
    options_parse(&o, 3, argv);
    EXPECT(options_was_set(&o, beta1) && !options_was_set(&o, beta2) && !options_was_set(&o, lr));
    EXPECT(isnan(o.lr) && o.epochs == -1 && !o.model && o.classify.count == 0 && !o.csv_separator);
    EXPECT(o.warmup.percent && share_of(o.warmup, 49) == 4 && share_of(o.warmup, 600) == 60);
    options_free(&o);
}

static void test_wrong_values_are_refused_with_the_reason(void) {
    const char *garbage[] = {"x", "1x", "1e", "e5", "0x10", "nan", "inf", "-inf", "1,5", "1 2", "' 1'",
        "1..2", "1e999", "infinity", "+-1"};
    char line[256];
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        snprintf(line, sizeof line, "--lr %s", garbage[i]);
        expect_refused(line, strcmp(garbage[i], "1 2") == 0 ? "takes one value" : "is not a number");
    }
    expect_refused("--lr", "needs a value");
    expect_refused("--lr --seed 1", "needs a value");
    expect_refused("--lr=", "needs a value");
    expect_refused("--lr ''", "needs a value");
    expect_refused("--lr -1", "out of range; give 0 or more");
    expect_refused("--beta1 1", "0 or more, below 1");
    expect_refused("--eps 0", "above 0");
    expect_refused("--val-split 1", "below 1");
    expect_refused("--epochs 1.5", "whole number");
    expect_refused("--epochs 0", "out of range");
    expect_refused("--batch-size 1e7", "1 to 1e6");
    expect_refused("--seed 99999999999999999999", "out of range");
    expect_refused("--offset -11", "-10 to 10");
    expect_refused("--image-mean 1 2", "has 2 numbers");
    expect_refused("--image-mean 1 2 3 4", "has 4 numbers");
    expect_refused("--image-mean 1 2 x", "not a number");
    expect_refused("--image-std 1 0 1", "out of range");
    expect_refused("--csv-separator ab", "single character");
    expect_refused("--image-resize-mode crop", "shortest squash longest");
    expect_refused("--image-resize-mode short", "shortest squash longest");
    expect_refused("--lock-image true", "--lock-image takes no value");
    expect_refused("--lock-image=true", "takes no value");
    expect_refused("pairs.csv", "does not belong to an option");
    expect_refused("--train-data a.tar b.tar", "--train-data takes one value here");
    expect_refused("--", "does not belong to an option");
    expect_refused("--=3", "does not belong to an option");
    expect_refused("-lr 3", "does not belong to an option");
    expect_refused("--lr 1 --lr 1", "twice");
    expect_refused("--lock-text --lock-text", "twice");
    expect_refused("--aug-cfg none --aug-cfg none", "twice");
}

static void test_a_share_is_a_count_or_a_percentage(
    void) { // parsed directly: this program leaves the group out
    const struct {
        const char *text;
        double value;
        bool percent, good;
    } cases[] = {{"10%", 10, true, true}, {"50", 50, false, true}, {"0", 0, false, true},
        {"12.5%", 12.5, true, true}, {"100%", 100, true, true}, {"1e3", 1000, false, true},
        {"101%", 0, true, false}, {"-1%", 0, true, false}, {"%", 0, true, false}, {"10%%", 0, true, false},
        {"1.5", 0, false, false}, {"x", 0, false, false}, {"nan%", 0, true, false}, {"-1", 0, false, false},
        {"", 0, false, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char error[OPTION_ERROR_SIZE] = "";
        Share share = {-1, false};
        bool good = option_share(&option_rows()[OPTION_warmup], cases[i].text, &share, error);
        EXPECT(good == cases[i].good && (good || error[0]), "'%s': %s", cases[i].text, error);
        if (good)
            EXPECT(share.value == cases[i].value && share.percent == cases[i].percent, "'%s' is %g",
                cases[i].text, share.value);
    }
    Share third = {33, true};
    EXPECT(share_of(third, 10) == 3 && share_of(third, 2) == 0);
}

static void test_unknown_names_are_refused_and_foreign_ones_explained(void) {
    expect_refused("--batch_size 3", "did you mean --batch-size?");
    expect_refused("--batch 3", "did you mean --batch-size?");
    expect_refused("--epoch 3", "did you mean --epochs?");
    expect_refused("--zeroshot_data x", "did you mean --zeroshot-data?");
    expect_refused("--hlep", "did you mean --help?");
    expect_refused("--warmup 3", "unknown option"); // its group is not offered by this program
    char endless[512];
    memset(endless, 'a', sizeof endless);
    memcpy(endless, "--", 2);
    endless[sizeof endless - 1] = 0;
    expect_refused(endless, "unknown option");
    const char *refused[] = {"--siglip", "--distill-model x", "--opt lamb", "--precision fp16",
        "--precision=pure_bf16", "--skip-scheduler", "--audio-ext flac", "--use-naflex",
        "--force-naflex-vision", "--fsdp", "--logs None", "--momentum 0.9", "--imagenet-val x",
        "--length-bucketing"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        expect_refused(refused[i], "");
        EXPECT(!strstr(child.text, "unknown option"), "%s: %s", refused[i], child.text);
    }
    expect_refused("--device cuda", "CPU");
    expect_setting(
        "--local-loss --gather-with-grad --lock-text-freeze-layer-norm --device cpu --torchcompile --seed 4",
        "seed", "4");
    int lines = 0;
    for (char *p = child.text; (p = strstr(p, "has no effect here")); p++) lines++;
    EXPECT(lines == 5, "%d lines for 5 ignored options", lines);
    expect_setting("--device=cpu --torchcompile-mode default --seed=4", "seed", "4");
}

static int count_lines(const char *text) {
    int lines = 0;
    for (; (text = strchr(text, '\n')); text++) lines++;
    return lines;
}

static void test_all_mistakes_of_a_line_are_told_at_once(void) {
    const char *const says[] = {"--siglip: ", "--batch-size 0: is out of range",
        "--fsdp-checkpoint: ", "--lr is given twice", "--learning-rate: unknown option; use --lr",
        "b.tar: does not belong", "--precision fp16: "};
    EXPECT(child_run(parse_and_print,
               "--siglip --batch-size 0 --fsdp-checkpoint full --lr 1 --lr 2 --learning-rate 3 "
               "--train-data a.tar b.tar c.tar --precision fp16 --seed 3") == EXIT_USAGE);
    for (size_t i = 0; i < sizeof says / sizeof *says; i++)
        EXPECT(strstr(child.text, says[i]), "%s does not say '%s'", child.text, says[i]);
    EXPECT(count_lines(child.text) == sizeof says / sizeof *says, "%s", child.text);
}

static void test_other_spellings_of_a_value_are_taken_and_told(void) {
    const char *const same[] = {"amp", "amp_bfloat16", "bf16"};
    for (size_t i = 0; i < 3; i++) {
        char line[64], told[128];
        snprintf(line, sizeof line, "--precision %s", same[i]);
        snprintf(told, sizeof told, "%s: is taken as --precision amp_bf16", line);
        expect_setting(line, "precision", "amp_bf16");
        EXPECT(strstr(child.text, told), "%s does not say '%s'", child.text, told);
    }
    expect_setting("--precision amp_bf16", "precision", "amp_bf16");
    EXPECT(!strstr(child.text, "is taken as"), "%s", child.text);
    expect_setting("--opt adamw --seed 4", "seed", "4");
    EXPECT(strstr(child.text, "--opt adamw has no effect here"), "%s", child.text);
}

// The names that the Trainer of Hugging Face, timm and Lightning have lead to ours; nothing is guessed where
// nothing is near.
static void test_names_of_other_programs_lead_to_ours(void) {
    const char *const names[][2] = {{"--learning_rate 1", "use --lr"}, {"--weight-decay 0", "use --wd"},
        {"--max-steps 3", "use --steps"}, {"--num_train_epochs 3", "use --epochs"},
        {"--per_device_train_batch_size 8", "use --batch-size"},
        {"--max_grad_norm 1", "use --grad-clip-norm"},
        {"--gradient_accumulation_steps 2", "use --accum-freq"}, {"--output-dir x", "use --logs"},
        {"--dataloader_num_workers 2", "use --workers"}, {"--bf16", "use --precision amp_bf16"},
        {"--freeze-vision-model", "use --lock-image"}, {"--run_name x", "use --name"}, {"--gpu 0", "GPU"},
        {"--gpus 2", "GPU"}, {"--Batch_Size 2", "did you mean --batch-size?"},
        {"--lora-rank 4", "--lock-image"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) expect_refused(names[i][0], names[i][1]);
    const char *const nothing[] = {"--frobnicate 3", "--xyz", "--hidden-size 8", "--warmup-ratio 0.1"};
    for (size_t i = 0; i < sizeof nothing / sizeof *nothing; i++) { // --warmup is not offered by this program
        expect_refused(nothing[i], "unknown option; --help lists all");
        EXPECT(!strstr(child.text, "did you mean"), "%s: %s", nothing[i], child.text);
    }
#define S(names, ours, how) EXPECT(option_is_a_row(ours), "--%s is not an option", ours);
    SYNONYMS(S)
#undef S
#define V(option, values, meaning, why) EXPECT(option_is_a_row(option), "--%s is not an option", option);
    VALUE_SYNONYMS(V)
#undef V
}

static void test_what_copying_does_to_a_line_is_recognized(void) {
    expect_setting("python -m open_clip_train.main --seed 4", "seed", "4");
    EXPECT(strstr(child.text, "python -m open_clip_train.main: is left out"), "%s", child.text);
    expect_setting("python3 src/training/main.py --seed 4", "seed", "4");
    expect_refused("torchrun --nproc_per_node 4 -m open_clip_train.main --seed 4", "runs as one process");
    expect_refused("python train_what.py --seed 4", "does not belong to an option");
    expect_refused("\xe2\x80\x93seed 4", "a dash of another kind");
    expect_refused("--seed 4 '\\ '", "a space after a backslash");
}

static int longest_line(const char *text) {
    int longest = 0;
    for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        const int n = (int)strcspn(p, "\n");
        if (n > longest) longest = n;
    }
    return longest;
}

static void test_help_lists_every_offered_option_in_100_columns(void) {
    EXPECT(child_run(parse_and_print, "--help") == 0);
    EXPECT(child_run(parse_and_print, "-h --unknown") == 0);
    EXPECT(
        longest_line(child.text) <= HELP_WIDTH, "a line of --help has %d columns", longest_line(child.text));
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionRow *row = &option_rows()[i];
        char name[128], help[4096] = "";
        FILE *f = fmemopen(help, sizeof help, "w");
        option_help(f, row);
        fclose(f);
        EXPECT(
            longest_line(help) <= HELP_WIDTH, "help of --%s has %d columns", row->name, longest_line(help));
        snprintf(name, sizeof name, "\n  --%s ", row->name);
        EXPECT((strstr(child.text, name) != NULL) == (row->group != GROUP_SCHEDULE), "--%s", row->name);
        if (option_offered(row)) EXPECT(strcmp(row->name, option_nearest(row->name)) == 0, "--%s", row->name);
        for (int j = 0; j < i; j++)
            EXPECT(strcmp(row->name, option_rows()[j].name), "--%s is in the table twice", row->name);
    }
    EXPECT(strstr(child.text, "[1 to 1e6; default: 64]") &&
           strstr(child.text, "default: 1e-5, or 5e-4 from random weights"));
}

// The output of options_print(), given as options again, prints the same.
static void test_printed_settings_read_back_as_options(void) {
    char first[sizeof child.text], line[sizeof child.text] = "";
    EXPECT(child_run(parse_and_print,
               "--lr 1e-4 --lock-image --classify x y --image-std 0.1 0.2 0.3 --aug-cfg scale=1,1 ratio=1,1 "
               "--model ViT-B-32") == 0);
    memcpy(first, child.text, sizeof first);
    for (char *p = child.text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        int name = (int)strcspn(p, " ");
        char *value = p + name + strspn(p + name, " ");
        int length = (int)strcspn(value, "\n");
        bool flag = length == 4 && memcmp(value, "true", 4) == 0;
        size_t n = strlen(line);
        snprintf(line + n, sizeof line - n, "--%.*s %.*s ", name, p, flag ? 0 : length, value);
    }
    EXPECT(child_run(parse_and_print, line) == 0, "%s", child.text);
    EXPECT_STRING(child.text, first);
}

// A resumed run takes its options from a checkpoint, which may be a stranger's. Each option that takes text
// either acts, and is left out then (ACTING_OPTIONS), or is one of these: they name what is read, or nothing
// outside of the program. A new option belongs into one of the two lists.
static void test_each_option_that_takes_text_is_known_to_act_or_to_be_harmless(void) {
    static const char harmless[] =
        "pretrained|model|pretrained-image|pretrained-text|resume|cache-dir|csv-*-key|image-key|text-key|"
        "json-text-key|train-data-upsampling-factors|train-templates|aug-cfg|wd-exclude|positives-key|"
        "classnames|"
        "templates|best-metric|classify|wandb-notes";
#define A(names, unless, does) names "|"
    static const char acting[] = ACTING_OPTIONS(A);
#undef A
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionRow *row = &option_rows()[i];
        const bool text = row->kind == KIND_TEXT || row->kind == KIND_WORDS || row->kind == KIND_LIST;
        EXPECT(matches_any(acting, row->name) + (text && matches_any(harmless, row->name)) == text,
            "--%s: does it run, start or write anything? ACTING_OPTIONS or the list above has to say",
            row->name);
    }
}

int main(void) {
    RUN(test_each_option_that_takes_text_is_known_to_act_or_to_be_harmless);
    RUN(test_each_kind_of_option_parses_its_values);
    RUN(test_a_list_takes_all_words_and_may_be_repeated);
    RUN(test_options_that_are_not_given_stay_unset);
    RUN(test_wrong_values_are_refused_with_the_reason);
    RUN(test_a_share_is_a_count_or_a_percentage);
    RUN(test_unknown_names_are_refused_and_foreign_ones_explained);
    RUN(test_all_mistakes_of_a_line_are_told_at_once);
    RUN(test_other_spellings_of_a_value_are_taken_and_told);
    RUN(test_names_of_other_programs_lead_to_ours);
    RUN(test_what_copying_does_to_a_line_is_recognized);
    RUN(test_help_lists_every_offered_option_in_100_columns);
    RUN(test_printed_settings_read_back_as_options);
    return test_report();
}
