// Labels and class names: which class a folder, a label of a table or a member of a shard stands for, and
// what ends the program instead; files of class names and prompts in all the forms that people have them in.
#include "clipc/train/evaluate.h"

#include "dev/test/child.h"
#include "dev/test/data_files.h"

// ---------------------------------------------------------------- helpers

// "a|b|c" as a list; a part "200*class %d" stands for 200 numbered texts from 0 on.
static StringList list_of(const char *text) {
    StringList out = {NULL, 0, 0};
    char copy[2048];
    snprintf(copy, sizeof copy, "%s", text);
    for (char *part = strtok(copy, "|"); part; part = strtok(NULL, "|")) {
        char *format = strchr(part, '*'), number[64];
        if (!format) string_list_add(&out, part);
        for (int i = 0; format && i < atoi(part); i++) {
            if (!strcmp(format, "*wnid")) snprintf(number, sizeof number, "%.9s", imagenet_classes[i].id);
            else if (!strcmp(format, "*name"))
                snprintf(number, sizeof number, "%s", imagenet_classes[i].name);
            else snprintf(number, sizeof number, "%s%d", format + 1, i);
            string_list_add(&out, number);
        }
    }
    return out;
}

typedef struct {
    const char *folders, *names; // lists
    const char *result;          // labels "0 1 2", or what the refusal says
} FolderCase;

// Prints the labels of the folders.
static void label_folders(const void *argument) {
    const FolderCase *c = (const FolderCase *)argument;
    StringList folders = list_of(c->folders), names = list_of(c->names);
    const ClassList classes = {(const char *const *)names.list, (int)names.count};
    string_list_sort(&folders);
    int *labels = (int *)malloc_check(folders.count * sizeof *labels);
    folders_label(labels, "ROOT", &folders, &classes);
    for (size_t i = 0; i < folders.count; i++) printf("%d ", labels[i]);
    free(labels);
    string_list_free(&folders);
    string_list_free(&names);
}

// The labels that the child printed after what it said.
static bool child_printed(const char *labels) {
    const char *newline = strrchr(child.text, '\n');
    return child.code == 0 && !strncmp(newline ? newline + 1 : child.text, labels, strlen(labels));
}

// ---------------------------------------------------------------- class folders

static void test_folders_are_matched_by_name(void) {
    static const FolderCase cases[] = {
        {"blue|green|red", "red|green|blue", "2 1 0 "},
        {"green|red", "red|green|blue", "1 0 "}, // not all classes have images
        {"polar_bear|sea__lion|t-shirt", "sea lion|t-shirt|polar bear", "2 0 1 "},
        {"Blue|Red_Car", "red car|blue", "1 0 "}, // capitals in all or in none
        {"Crane|crane", "crane|Crane", NULL},
        {"crane|dog", "Crane|crane|dog", "1 2 "},            // as it stands before another spelling
        {"0|1|10|2", "0|1|2|3|4|5|6|7|8|9|10", "0 1 10 2 "}, // digits are their own names
        {"5|7", "5|7", NULL},                                // below
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!cases[i].result) continue;
        child_run(label_folders, &cases[i]);
        EXPECT(child_printed(cases[i].result), "%s: %s", cases[i].folders, child.text);
    }
    child_run(label_folders, &cases[0]);
    EXPECT(!strstr(child.text, "ROOT"), "nothing to say: %s", child.text);
    child_run(label_folders, &cases[2]);
    EXPECT(strstr(child.text, "2 of 3 class folders") && strstr(child.text, "'polar_bear' is 'polar bear'"),
        "%s", child.text);
    child_run(label_folders, &cases[7]);
    EXPECT(child_printed("0 1 "), "two names that are numbers beyond the list: %s", child.text);
}

static void test_folders_that_are_not_all_classes_are_refused(void) {
    static const FolderCase cases[] = {
        {"blue|green|red", "blue|green|rot",
            "the class folder 'red' is not one of the 3 class names, as 2 of 3"},
        {"blue|grue|red|teal", "blue|green|red", "'grue' is not one of the 3 class names, as 2 of 4"},
        {"blue|red", "blue|Red", "the class folder 'red' is not one of the 2 class names, only 'Red' is"},
        {"a|b|c", "x|y", "3 class folders, but 2 class names"},
        {"a|b", "x|y|z", "2 class folders, but 3 class names"},
        {"Red_Car|red car", "red car|dog", "'Red_Car' and 'red car' have the same class name"},
        {"crane|dog", "crane|dog|crane", "'crane' has the name of several classes"},
        {"CRANE|dog", "Crane|crane|dog", "'CRANE' has the name of several classes"},
        {"class_1|class_10|class_2", "cat|dog|emu", "'class_2' or 'class_10' first?"},
        {"1|2", "1|2|3", "numbers of classes and names of others: '1' is the name of class 0"},
        {"0|1|2", "1|2|3", "the class folder '0' is not one of the 3 class names"},
        {"1|2|3", "cat|dog|emu",
            "numbers up to 3, which do not go with 3 class names: those have the numbers 0 to 2"},
        {"0|1|01", "cat|dog|emu", "which do not go with 3 class names"},
        {"n00000001|n01440764|n01443537", "goldfish|tench|ape", "none is that of 'n00000001'"},
        {"n00000001|n00000002", "cat|dog|emu", "2 class folders, but 3 class names"},
        {"200*wnid", "199*name", "none is that of 'n02097298'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        child_run(label_folders, &cases[i]);
        EXPECT(child_refused(cases[i].result), "%s with %s: %d: %s", cases[i].folders, cases[i].names,
            child.code, child.text);
    }
}

static void test_folders_without_names_of_the_list_are_said(void) {
    static const struct {
        FolderCase c;
        const char *says;
    } cases[] = {
        {{"a|b|c", "cat|dog|emu", "0 1 2 "},
            "by sorted order, as no folder has one of these names: 'a' is 'cat'"},
        {{"001.a|002.b|010.c", "cat|dog|emu", "0 1 2 "}, "'001.a' is 'cat'"},
        {{"0|1|10|2", "11*x", "0 1 10 2 "}, "by number: '0' is 'x0'"},
        {{"00|01|03", "cat|dog|emu|fox", "0 1 3 "}, "by number: '00' is 'cat'"},
        {{"0|1", "cat|dog|emu", "0 1 "}, "numbers up to 1, and there are 3 class names"},
        {{"n01443537|n01440764", "goldfish|tench", "1 0 "}, "by WordNet id: 'n01440764' is 'tench'"},
        {{"n01443537", "1000*name", "1 "}, "by WordNet id: 'n01443537' is 'goldfish'"},
        {{"n01443537|n01440764", "1000*other ", "0 1 "}, "by WordNet id: 'n01440764' is 'other 0'"},
        {{"n00000001|n00000002", "cat|dog", "0 1 "}, "by sorted order"},
        {{"n01440764|n99999999", "tench|dog", "0 1 "}, "by sorted order"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        child_run(label_folders, &cases[i].c);
        EXPECT(child_printed(cases[i].c.result) && strstr(child.text, cases[i].says), "%s with %s: %d: %s",
            cases[i].c.folders, cases[i].c.names, child.code, child.text);
    }
    const FolderCase v2 = {"1000*", "1000*name", NULL}; // ImageNet-V2: 0 … 999, sorted as texts
    StringList folders = list_of(v2.folders);
    char expected[8000];
    size_t n = 0;
    string_list_sort(&folders);
    for (size_t i = 0; i < folders.count; i++)
        n += (size_t)snprintf(expected + n, sizeof expected - n, "%s ", folders.list[i]);
    child_run(label_folders, &v2);
    EXPECT(child_printed(expected), "%s", child.text);
    string_list_free(&folders);
    const FolderCase whole = {"1000*wnid", "1000*name", NULL};
    child_run(label_folders, &whole);
    EXPECT(child_printed("0 1 2 3 4 5 "), "%s", child.text);
}

// Prints the class names of folders.
static void name_folders(const void *argument) {
    StringList folders = list_of((const char *)argument), names = classnames_from_folders("ROOT", &folders);
    for (size_t i = 0; i < names.count; i++) printf("%s|", names.list[i]);
    string_list_free(&folders);
    string_list_free(&names);
}

static void test_folders_name_classes(void) {
    static const char *const cases[][2] = {{"golden_retriever|cat", "golden retriever|cat|"},
        {"n01440764|n15075141", "tench|toilet paper|"}, {"7up|9", "7up|9|"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        child_run(name_folders, cases[i][0]);
        EXPECT(child_printed(cases[i][1]), "%s", child.text);
        EXPECT(!strstr(child.text, "'n01440764' is 'tench'") == (i != 1), "%s", child.text);
    }
    EXPECT_REFUSED(name_folders, "0|1|2", "its class folders are numbers, such as '0', not names");
    EXPECT_REFUSED(name_folders, "n01440764|n01440765", "'n01440765' is not an id of ImageNet-1k");
    EXPECT_REFUSED(name_folders, "n01440764|dog", "'dog' is not an id of ImageNet-1k");
}

static void test_same_class_in_two_roots_is_one_class(void) {
    static const char *const folders[] = {"r1/polar_bear", "r1/dog", "r2/Polar bear", "r2/cat"};
    char name[64], spec[2 * PATH_SIZE], second[PATH_SIZE];
    for (int i = 0; i < 4; i++) {
        make_directories(at(folders[i]));
        snprintf(name, sizeof name, "%s/x.png", folders[i]);
        write_text(at(name), "x");
    }
    path_format(second, "%s", at("r2"));
    snprintf(spec, sizeof spec, "%s::%s", at("r1"), second);
    DatasetConfig c = dataset_config_default();
    c.prompts = true;
    Dataset d = dataset_open(spec, &c, 2);
    EXPECT(d.count == 4 && d.class_folders.count == 3, "%d classes", (int)d.class_folders.count);
    EXPECT(d.samples[0].label == 0 && d.samples[1].label == 1 && d.samples[2].label == 1 &&
               d.samples[3].label == 2,
        "labels");
    dataset_free(&d);
}

// ---------------------------------------------------------------- tables and shards

typedef struct {
    const char *labels, *names; // lists
    const char *result;
} TableCase;

static bool as_shard; // the labels of open_labels() are members of a tar

// Writes the labels to a table, or a shard, and prints how they are read for zero-shot classification.
static void open_labels(const void *argument) {
    const TableCase *c = (const TableCase *)argument;
    StringList labels = list_of(c->labels), names = list_of(c->names);
    DatasetConfig keys = dataset_config_default();
    FILE *f = fopen_check(at("l.csv"), "w"), *n = fopen_check(at("names.txt"), "w");
    struct archive *a;
    char spec[PATH_SIZE], member[64];
    tar_plain(at("l.tar"), &a);
    fprintf(f, "filepath,label\n");
    for (size_t i = 0; i < labels.count; i++) {
        fprintf(f, "%zu.png,%s\n", i, labels.list[i]);
        snprintf(member, sizeof member, "%zu.png", i);
        write_text(at(member), "x");
        snprintf(member, sizeof member, "%03zu.png", i);
        tar_add_text(a, member, "x");
        snprintf(member, sizeof member, "%03zu.cls", i);
        tar_add_text(a, member, labels.list[i]);
    }
    for (size_t i = 0; i < names.count; i++) fprintf(n, "%s\n", names.list[i]);
    fclose(f);
    fclose(n);
    tar_finish(a);
    path_format(spec, "%s", at(as_shard ? "l.tar" : "l.csv"));
    ZeroshotSet set = zeroshot_open("zeroshot-data", spec, at("names.txt"), NULL, &keys);
    for (int64_t i = 0; i < dataset_count(&set.data); i++) printf("%d ", set.data.samples[i].label);
    zeroshot_close(&set);
    string_list_free(&labels);
    string_list_free(&names);
}

static void test_labels_of_tables_and_shards(void) {
    static const TableCase cases[] = {
        {"0|2|1", "cat|dog|emu", "0 2 1 "},
        {"emu|cat|0|2", "cat|dog|emu", "2 0 0 2 "},
        {"Polar_Bear| dog |POLAR  bear", "dog|polar bear", "1 0 1 "},
        {"1990|2000|2010", "2000|1990|2010", "1 0 2 "}, // names that are numbers beyond the list
        {"3|1|2", "1|2|3", "2 0 1 "},                   // 3 can only be a name
        {"0|1|2", "1|2|3", "0 1 2 "},                   // 0 can only be a number
        {"0|1", "0|1", "0 1 "},
        {"n01443537|n01440764", "1000*name", "1 0 "},
        {"n01443537|tench", "goldfish|tench", "0 1 "},
        {"0|1|0", "cat|dog|emu", "0 1 0 "},
    };
    static const TableCase refused[] = {
        {"1|2|3", "cat|dog|emu", "its labels count from 1 to 3, but the 3 names"},
        {"0|1|7|8", "cat|dog|emu", "'7' is not a class, as for 2 of 4 samples"},
        {"cat|rat|emu", "cat|dog|emu", "'rat' is not a class, as for 1 of 3 samples"},
        {"-1|0", "cat|dog", "'-1' is not a class"},
        {"1.0|0", "cat|dog", "'1.0' is not a class"},
        {"1|2", "1|2|3", "its labels are numbers of classes and names of others"},
        {"n01443537|n01440764", "tench|dog", "'n01443537' is not a class"},
        {"crane|dog", "crane|dog|crane", "'crane' is not a class"},
        {"cat| ", "cat|dog", "1 of 2 samples have no label"},
    };
    for (int shard = 0; shard < 2; shard++) {
        as_shard = shard;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            child_run(open_labels, &cases[i]);
            EXPECT(child_printed(cases[i].result), "%s with %s: %d: %s", cases[i].labels, cases[i].names,
                child.code, child.text);
        }
        EXPECT(strstr(child.text, "its labels are 0 to 1, and the names in") &&
                   strstr(child.text, "to 2 ('emu')"),
            "%s", child.text);
        for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
            child_run(open_labels, &refused[i]);
            EXPECT(child.code == EXIT_USAGE && strstr(child.text, refused[i].result), "%s with %s: %d: %s",
                refused[i].labels, refused[i].names, child.code, child.text);
        }
    }
}

// ---------------------------------------------------------------- files of prompts and names

typedef struct {
    const char *text, *result;
} FileCase;

static bool of_names; // print_file() reads class names

static void print_file(const void *argument) {
    write_text(at("file"), (const char *)argument);
    StringList list = of_names ? classnames_read(at("file")) : templates_read(at("file"));
    for (size_t i = 0; i < list.count; i++) printf("%s|", list.list[i]);
    string_list_free(&list);
}

static void check_files(const FileCase *cases, size_t count, bool names) {
    of_names = names;
    for (size_t i = 0; i < count; i++) {
        child_run(print_file, cases[i].text);
        if (strchr(cases[i].result, '|'))
            EXPECT(
                child.code == 0 && !strcmp(child.text, cases[i].result), "%s: %s", cases[i].text, child.text);
        else EXPECT(child_refused(cases[i].result), "%s: %d: %s", cases[i].text, child.code, child.text);
    }
}

static void test_prompts_of_all_forms(void) {
    static const FileCase cases[] = {
        {"a {}\nb {c}, {}\nc {classname}\nd %s\ne {0}", "a {}|b {}, {}|c {}|d {}|e {}|"},
        {"'tis a {}\n\"{}\" in quotes", "'tis a {}|\"{}\" in quotes|"},
        {"OPENAI = (\n    lambda c: f'a bad photo of a {c}.',  # one\n    lambda c: f\"the {c}'s "
         "{c}.\",\n)\n",
            "a bad photo of a {}.|the {}'s {}.|"},
        {"lambda x: f'a {x}.'\nlambda name: 'the {}'.format(name)\nlambda c: 'my %s' % c",
            "a {}.|the {}|my {}|"},
        {"templates = [\n 'a {}', 'it\\'s a {c}',\n]", "a {}|it's a {}|"},
        {"f'a {c}.'\nf'b {c}.'", "a {}.|b {}.|"},
        {"'a {}.',\n'b {}.'\n", "a {}.|b {}.|"},
        {"[\"a {c}.\", \"b {}.\"]", "a {}.|b {}.|"},
        {"{\"birds\": [\"a {c}\"]}", "a {}|"},
        {"a photo\n", "no {} in 'a photo'"},
        {"a photo of a {}.\na photo\n", "no {} in 'a photo'"},
        {"[\"a {c}.\", \"b.\"]", "no {} in 'b.'"},
        {"a {color} photo of a {}", "'{color}' in '{color} photo of a {}' is not known as the place"},
        {"a {c.lower()}", "'{c.lower()}' in"},
        {"lambda c: 'a photo of ' + c", "begins like Python"},
        {"[\n 'a {}'\n 'b {}'\n]", "begins like Python"},
        {"['a {}'", "begins like Python"},
        {"A = ['a {}']\nB = ['b {}']", "begins like Python"},
        {"X: list = [\n \"a {}\",\n]", "looks like part of a list"},
        {"a {}\n'b {}',\n", "looks like part of a list"},
        {"{\"a\": [\"{c}\"], \"b\": [\"{c}\"]}",
            "holds 2 entries, 'a' and others, not one list of templates"},
        {"[1, 2]", "entry 0 of its list is not a text"},
        {"{\"a\": 1}", "JSON without a list"},
    };
    check_files(cases, sizeof cases / sizeof *cases, false);
}

static void test_class_names_of_all_forms(void) {
    static const FileCase cases[] = {
        {"tench\ngreat white shark\n", "tench|great white shark|"},
        {"[\"tench\", \"goldfish\"]", "tench|goldfish|"},
        {"{\"fish\": [\"tench\", \"goldfish\"]}", "tench|goldfish|"},
        {"names = ['tench', 'cock\\'s foot']", "tench|cock's foot|"},
        {"n01440764\nn01443537", "tench|goldfish|"},
        {"1 euro\n2 euros\n", "1 euro|2 euros|"},
        {"0\n1\n2\n", "0|1|2|"},
        {"n01440764\nn01440765", "'n01440765' is not one of the 1000 WordNet ids"},
        {"n01440764\ndog", "'dog' is not one of the 1000 WordNet ids"},
        {"n01440764 tench\nn01443537 goldfish", "begin with WordNet ids"},
        {"0,tench\n1,goldfish", "begin with numbers, such as '0,tench'"},
        {"1: tench\n2: goldfish", "begin with numbers"},
        {"{\"0\": \"tench\", \"1\": \"goldfish\"}", "holds 2 entries"},
        {"[\n\"tench\",\n\"goldfish\"\n", "begins like Python"},
        {"import x\n\"tench\",\n", "looks like part of a list"},
    };
    check_files(cases, sizeof cases / sizeof *cases, true);
}

// What people have on disk, where it is here.
static void test_files_of_the_field_are_read(void) {
    const char *lists = "../shared/data/prompts";
    char path[PATH_SIZE];
    if (!is_directory(lists)) return;
    path_format(path, "%s/imagenet_templates_80.txt", lists);
    StringList templates = templates_read(path);
    EXPECT(templates.count == 80, "%zu", templates.count);
    string_list_free(&templates);
    path_format(path, "%s/imagenet_classnames.txt", lists);
    StringList names = entries_read(path, "class names");
    for (int i = 0; i < IMAGENET_CLASSES; i++) EXPECT_STRING(names.list[i], imagenet_classes[i].name);
    string_list_free(&names);
    path_format(path, "%s/imagenet_wnids.txt", lists);
    names = entries_read(path, "ids");
    for (int i = 0; i < IMAGENET_CLASSES; i++) {
        EXPECT_STRING(names.list[i], imagenet_classes[i].id);
        EXPECT(imagenet_class(names.list[i], 9) == i, "%s", names.list[i]);
    }
    string_list_free(&names);
    path_format(path, "%s/imagenet_r_wnids.txt", lists);
    names = classnames_read(path);
    EXPECT(names.count == 200, "%zu", names.count);
    EXPECT_STRING(names.list[0], "goldfish");
    string_list_free(&names);
}

int main(void) {
    make_test_folder("test_labels");
    RUN(test_folders_are_matched_by_name);
    RUN(test_folders_that_are_not_all_classes_are_refused);
    RUN(test_folders_without_names_of_the_list_are_said);
    RUN(test_folders_name_classes);
    RUN(test_same_class_in_two_roots_is_one_class);
    RUN(test_labels_of_tables_and_shards);
    RUN(test_prompts_of_all_forms);
    RUN(test_class_names_of_all_forms);
    RUN(test_files_of_the_field_are_read);
    remove_test_folder();
    return test_report();
}
