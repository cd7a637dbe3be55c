// Labels: which class a sample belongs to, from the name of its folder or the text beside it.
//
// A class is given by its name in the list of class names (--classnames), by its number there, or by its
// WordNet id. Names are equal as they stand, else where the case of a-z does not matter and blanks and
// underscores, one or several, are the same; class folders differ in case from all their names or from none.
// A set in which only some labels are names of classes, or which can be read in two ways, ends the program
// with one line: labels are never given by luck.
#ifndef CLIPC_LABELS_H
#define CLIPC_LABELS_H

#include "clipc/base/utils.h"      // die, warn, StringList
#include "clipc/data/prompts.h"    // imagenet_class
#include "clipc/data/webdataset.h" // brace_number

#include <ctype.h>

#define CLASS_NONE (-1)    // no class
#define CLASS_SEVERAL (-2) // the name is that of more than one class

// The names of the classes; index = label.
typedef struct {
    const char *const *names; // (count)
    int count;
} ClassList;

// ---------------------------------------------------------------- names

// The next character of a name in its plain form: small letters, ' ' for a run of blanks and underscores, 0
// at the end, before which blanks do not count.
static inline int name_next(const char **at, const char *end) {
    const char *s = *at;
    bool blank = false;
    while (s < end && (isspace((unsigned char)*s) || *s == '_')) {
        blank = true;
        s++;
    }
    if (blank || s == end) {
        *at = s;
        return s == end ? 0 : ' ';
    }
    *at = s + 1;
    return *s >= 'A' && *s <= 'Z' ? *s + 'a' - 'A' : (unsigned char)*s;
}

// Orders names by their plain form; 0: they are equal.
static inline int compare_names(const char *a, size_t a_length, const char *b, size_t b_length) {
    const char *a_end = a + a_length, *b_end = b + b_length;
    while (a < a_end && (isspace((unsigned char)*a) || *a == '_')) a++;
    while (b < b_end && (isspace((unsigned char)*b) || *b == '_')) b++;
    for (;;) {
        const int x = name_next(&a, a_end), y = name_next(&b, b_end);
        if (x != y || !x) return x - y;
    }
}

static inline int compare_name_pointers(const void *a, const void *b) {
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    return compare_names(x, strlen(x), y, strlen(y));
}

// The class with this name, CLASS_NONE or CLASS_SEVERAL.
static inline int class_of_name(const ClassList *c, const char *name, size_t length) {
    int exact = CLASS_NONE, plain = CLASS_NONE;
    for (int i = 0; i < c->count; i++) {
        const char *other = c->names[i];
        if (compare_names(other, strlen(other), name, length)) continue;
        plain = plain == CLASS_NONE ? i : CLASS_SEVERAL;
        if (strlen(other) == length && !memcmp(other, name, length))
            exact = exact == CLASS_NONE ? i : CLASS_SEVERAL;
    }
    return exact == CLASS_NONE ? plain : exact;
}

// The class number that a text of digits stands for, or -1.
static inline int class_number(const char *text, size_t length) {
    return length && length <= 9 ? (int)brace_number(text, length) : -1;
}

// to (IMAGENET_CLASSES): the label of each class of ImageNet-1k, or CLASS_NONE. A list of 1,000 names in
// which no name of ImageNet stands at another place is a list of ImageNet's classes, however it words some of
// them; in any other list the names say where a class is.
static inline void imagenet_labels(int *to, const ClassList *c) {
    bool same_order = c->count == IMAGENET_CLASSES;
    for (int i = 0; i < IMAGENET_CLASSES; i++) {
        const char *name = imagenet_classes[i].name;
        const bool here = c->count == IMAGENET_CLASSES &&
                          !compare_names(c->names[i], strlen(c->names[i]), name, strlen(name));
        to[i] = here ? i : class_of_name(c, name, strlen(name));
        same_order = same_order && (to[i] == i || to[i] == CLASS_NONE);
    }
    for (int i = 0; i < IMAGENET_CLASSES; i++)
        to[i] = same_order ? i : to[i] == CLASS_SEVERAL ? CLASS_NONE : to[i];
}

// ---------------------------------------------------------------- class folders

// Numbers within texts count as numbers: class_2 comes before class_10.
static inline int compare_natural(const char *a, const char *b) {
    while (*a && *b) {
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b)) {
            a += strspn(a, "0");
            b += strspn(b, "0");
            const size_t m = strspn(a, "0123456789"), n = strspn(b, "0123456789");
            const int order = m != n ? (m < n ? -1 : 1) : memcmp(a, b, m);
            if (order) return order;
            a += m;
            b += n;
        } else if (*a != *b) return (unsigned char)*a - (unsigned char)*b;
        else {
            a++;
            b++;
        }
    }
    return (unsigned char)*a - (unsigned char)*b;
}

// What the names of class folders have in common.
typedef struct {
    size_t numbers, ids; // how many are class numbers, and how many like WordNet ids
} FolderKinds;

// Ends the program where two folders would be one class.
static inline void folders_check_names(const char *root, const StringList *folders) {
    char **sorted = (char **)malloc_check(folders->count * sizeof *sorted);
    memcpy(sorted, folders->list, folders->count * sizeof *sorted);
    qsort(sorted, folders->count, sizeof *sorted, compare_name_pointers);
    for (size_t i = 1; i < folders->count; i++)
        if (compare_name_pointers(&sorted[i - 1], &sorted[i]) == 0)
            die(EXIT_USAGE,
                "%s: the folders '%s' and '%s' have the same class name (case, blanks and underscores do not "
                "count); rename one of them or join them",
                root, sorted[i - 1], sorted[i]);
    free(sorted);
}

static inline FolderKinds folders_kinds(const StringList *folders) {
    FolderKinds k = {0, 0};
    for (size_t i = 0; i < folders->count; i++) {
        k.numbers += class_number(folders->list[i], strlen(folders->list[i])) >= 0;
        k.ids += is_wordnet_id(folders->list[i], strlen(folders->list[i]));
    }
    return k;
}

// Ends the program where the folders' names cannot be what classes are called, so that --classnames is
// needed: numbers, and WordNet ids other than ImageNet's.
static inline void folders_check_words(const char *root, const StringList *folders) {
    const FolderKinds kinds = folders_kinds(folders);
    if (kinds.numbers == folders->count)
        die(EXIT_USAGE,
            "%s: its class folders are numbers, such as '%s', not names; give --classnames FILE, the name of "
            "class 0 first",
            root, folders->list[0]);
    for (size_t i = 0; kinds.ids && i < folders->count; i++)
        if (imagenet_class(folders->list[i], strlen(folders->list[i])) < 0)
            die(EXIT_USAGE,
                "%s: its class folders are WordNet ids, not names, and '%s' is not an id of ImageNet-1k; "
                "give --classnames FILE, one name a line in the order of the sorted folders",
                root, folders->list[i]);
}

// Says how the folders were matched, by the first pair.
static inline void folders_say(
    const char *root, const char *how, const StringList *folders, const int *labels, const ClassList *c) {
    warn("%s: its class folders are matched to the class names by %s: '%s' is '%s'", root, how,
        folders->list[0], c->names[labels[0]]);
}

// The folders as class numbers into labels; false where one is beyond the list, or two are the same number.
static inline bool folders_by_number(int *labels, const StringList *folders, const ClassList *c) {
    bool *taken = (bool *)calloc_check((size_t)c->count, sizeof *taken), right = true;
    for (size_t i = 0; i < folders->count && right; i++) {
        labels[i] = class_number(folders->list[i], strlen(folders->list[i]));
        right = labels[i] >= 0 && labels[i] < c->count && !taken[labels[i]];
        if (right) taken[labels[i]] = true;
    }
    free(taken);
    return right;
}

// All folders are class numbers; `named` says whether they are names of the list as well, with these labels.
static inline void folders_numbered(
    int *labels, const char *root, const StringList *folders, const ClassList *c, bool named) {
    const size_t bytes = folders->count * sizeof *labels;
    int *numbers = (int *)malloc_check(bytes), highest = 0;
    const bool right = folders_by_number(numbers, folders, c);
    if (named && right && memcmp(labels, numbers, bytes))
        die(EXIT_USAGE,
            "%s: its class folders are numbers of classes and names of others: '%s' is the name of class %d; "
            "give class names that are not numbers",
            root, folders->list[0], labels[0]);
    for (size_t i = 0; i < folders->count; i++) {
        const int number = class_number(folders->list[i], strlen(folders->list[i]));
        highest = number > highest ? number : highest;
    }
    if (!named && !right)
        die(EXIT_USAGE,
            "%s: its %zu class folders are numbers up to %d, which do not go with %d class names: those have "
            "the numbers 0 to %d, each once; give one name a class, and count from 0",
            root, folders->count, highest, c->count, c->count - 1);
    if (!named) {
        memcpy(labels, numbers, bytes);
        folders_say(root, "number", folders, labels, c);
        if (highest != c->count - 1)
            warn("%s: its class folders are numbers up to %d, and there are %d class names; check that they "
                 "belong together",
                root, highest, c->count);
    }
    free(numbers);
}

// No folder is the name of a class: the sorted folders are the classes in their order.
static inline void folders_sorted(
    int *labels, const char *root, const StringList *folders, const ClassList *c) {
    if (folders->count != (size_t)c->count)
        die(EXIT_USAGE,
            "%s: %zu class folders, but %d class names, and no folder has one of these names; give "
            "--classnames one line a folder",
            root, folders->count, c->count);
    for (size_t i = 1; i < folders->count; i++)
        if (compare_natural(folders->list[i - 1], folders->list[i]) > 0)
            die(EXIT_USAGE,
                "%s: no class folder has one of the class names, and their order is not clear: '%s' or '%s' "
                "first? name the folders like the classes",
                root, folders->list[i], folders->list[i - 1]);
    for (size_t i = 0; i < folders->count; i++) labels[i] = (int)i;
    folders_say(root, "sorted order, as no folder has one of these names", folders, labels, c);
}

// All folders are WordNet ids and none is a name of the list.
static inline void folders_of_wordnet(
    int *labels, const char *root, const StringList *folders, const ClassList *c) {
    int to[IMAGENET_CLASSES];
    size_t known = 0, in_order = 0;
    imagenet_labels(to, c);
    for (size_t i = 0; i < folders->count; i++) {
        const int class_of = imagenet_class(folders->list[i], strlen(folders->list[i]));
        labels[i] = class_of < 0 ? CLASS_NONE : to[class_of];
        known += labels[i] >= 0;
        in_order += labels[i] == (int)i;
    }
    if (known == folders->count) folders_say(root, "WordNet id", folders, labels, c);
    else if (!known || (known == in_order && folders->count == (size_t)c->count))
        folders_sorted(labels, root, folders, c);
    else
        for (size_t i = 0; i < folders->count; i++)
            if (labels[i] < 0)
                die(EXIT_USAGE,
                    "%s: the class names are those of some of its WordNet ids, but none is that of '%s'; "
                    "give the names of all classes",
                    root, folders->list[i]);
}

// Are two names that are equal in their plain form written with the same capitals?
static inline bool same_capitals(const char *a, const char *b) {
    for (;; a++, b++) {
        while (isspace((unsigned char)*a) || *a == '_') a++;
        while (isspace((unsigned char)*b) || *b == '_') b++;
        if (*a != *b || !*a) return *a == *b;
    }
}

// All folders are names of the list. Where some differ from theirs in capitals, all must: one that differs
// alone may be meant as another class, and ends the program.
static inline void folders_check_capitals(
    const char *root, const StringList *folders, const int *labels, const ClassList *c) {
    size_t others = 0, first = 0;
    for (size_t i = folders->count; i-- > 0;)
        if (!same_capitals(folders->list[i], c->names[labels[i]])) {
            others++;
            first = i;
        }
    if (others && others < folders->count)
        die(EXIT_USAGE,
            "%s: the class folder '%s' is not one of the %d class names, only '%s' is; correct the folder or "
            "the name",
            root, folders->list[first], c->count, c->names[labels[first]]);
}

// Says which folders have the name of their class in another spelling, by the first one.
static inline void folders_say_spelling(
    const char *root, const StringList *folders, const int *labels, const ClassList *c) {
    size_t others = 0, first = 0;
    for (size_t i = folders->count; i-- > 0;)
        if (strcmp(folders->list[i], c->names[labels[i]])) {
            others++;
            first = i;
        }
    if (others)
        warn("%s: %zu of %zu class folders have the name of their class in another spelling: '%s' is '%s' "
             "(case, blanks and underscores do not count)",
            root, others, folders->count, folders->list[first], c->names[labels[first]]);
}

// labels (folders->count) of class folders with sorted names. All are names of the list, or all are class
// numbers, or WordNet ids; or none is a name and there are as many: then the sorted folders are the classes
// in their order, and a line says so. Anything else ends the program.
static inline void folders_label(
    int *labels, const char *root, const StringList *folders, const ClassList *c) {
    const FolderKinds kinds = folders_kinds(folders);
    size_t named = 0;
    const char *missing = NULL;
    folders_check_names(root, folders);
    for (size_t i = 0; i < folders->count; i++) {
        labels[i] = class_of_name(c, folders->list[i], strlen(folders->list[i]));
        if (labels[i] == CLASS_SEVERAL)
            die(EXIT_USAGE,
                "%s: the folder '%s' has the name of several classes; give every class a name of its own",
                root, folders->list[i]);
        named += labels[i] >= 0;
        if (labels[i] < 0 && !missing) missing = folders->list[i];
    }
    const bool all = named == folders->count;
    if (kinds.numbers == folders->count && (all || !named)) folders_numbered(labels, root, folders, c, all);
    else if (named && !all)
        die(EXIT_USAGE,
            "%s: the class folder '%s' is not one of the %d class names, as %zu of %zu folders are; correct "
            "the folder or the name",
            root, missing, c->count, named, folders->count);
    else if (!named && kinds.ids == folders->count) folders_of_wordnet(labels, root, folders, c);
    else if (!named) folders_sorted(labels, root, folders, c);
    else {
        folders_check_capitals(root, folders, labels, c);
        folders_say_spelling(root, folders, labels, c);
    }
}

// Class names from those of folders: golden_retriever becomes "golden retriever", n01440764 "tench". Numbers
// and other WordNet ids end the program.
static inline StringList classnames_from_folders(const char *root, const StringList *folders) {
    StringList names = {NULL, 0, 0};
    folders_check_words(root, folders);
    for (size_t i = 0; i < folders->count; i++) {
        const int class_of = imagenet_class(folders->list[i], strlen(folders->list[i]));
        string_list_add(&names, class_of < 0 ? folders->list[i] : imagenet_classes[class_of].name);
        for (char *c = names.list[i]; *c && class_of < 0; c++)
            if (*c == '_') *c = ' ';
    }
    if (folders_kinds(folders).ids)
        warn("%s: its class folders are WordNet ids and take ImageNet's names: '%s' is '%s'", root,
            folders->list[0], names.list[0]);
    return names;
}

// ---------------------------------------------------------------- labels of tables and shards

// Labels of one kind that are not a class: how many, and the first of them.
typedef struct {
    int64_t count, sample;
    char text[96];
} LabelNote;

// How the labels of a data set's tables and shards were read so far.
typedef struct {
    bool begun;
    bool number_names;                   // a class has a number for its name that is not its own
    int64_t numbers, as_number, as_name; // labels that are numbers, classes by number, classes by name
    int lowest, highest;                 // of the numbers
    LabelNote beyond, unknown;           // numbers, texts
    struct {
        int64_t sample;
        int by_name;
    } * doubtful; // (doubtful_count) numbers that may be names
    size_t doubtful_count, doubtful_capacity;
    int *imagenet; // (IMAGENET_CLASSES) labels of WordNet ids, NULL before the first one
} LabelReading;

static inline void labels_begin(LabelReading *r, const ClassList *c) {
    r->begun = true;
    r->lowest = INT32_MAX;
    r->highest = -1;
    for (int i = 0; i < c->count; i++) {
        const int number = class_number(c->names[i], strlen(c->names[i]));
        r->number_names |= number >= 0 && number != i;
    }
}

static inline int label_none(LabelNote *note, int64_t sample, const char *text, size_t length) {
    if (!note->count++) {
        note->sample = sample;
        snprintf(note->text, sizeof note->text, "%.*s", (int)min_i64((int64_t)length, 95), text);
    }
    return CLASS_NONE;
}

// The class of a number: its place in the list; labels_settle() decides where it may be a name instead.
static inline int label_of_number(
    LabelReading *r, const ClassList *c, int64_t sample, int number, const char *text, size_t length) {
    const bool in_list = !c->count || number < c->count;
    r->numbers++;
    r->as_number += in_list;
    if (number < r->lowest) r->lowest = number;
    if (number > r->highest) r->highest = number;
    if (r->number_names) {
        const int by_name = class_of_name(c, text, length);
        list_grow((void **)&r->doubtful, &r->doubtful_capacity, r->doubtful_count + 1, sizeof *r->doubtful);
        r->doubtful[r->doubtful_count].sample = sample;
        r->doubtful[r->doubtful_count++].by_name = by_name;
        r->as_name += by_name >= 0;
    }
    return in_list ? number : label_none(&r->beyond, sample, text, length);
}

static inline int label_of_wordnet_id(LabelReading *r, const ClassList *c, const char *text, size_t length) {
    const int class_of = imagenet_class(text, length);
    if (class_of < 0) return CLASS_NONE;
    if (!r->imagenet) {
        r->imagenet = (int *)malloc_check(IMAGENET_CLASSES * sizeof *r->imagenet);
        imagenet_labels(r->imagenet, c);
    }
    return r->imagenet[class_of];
}

// The label of a sample: a number from 0 on, the name of a class, or a WordNet id; CLASS_NONE if it is none
// of these, or no class has this number. Without class names only numbers are labels.
static inline int label_parse(
    LabelReading *r, const ClassList *c, int64_t sample, const char *text, size_t length) {
    if (!r->begun) labels_begin(r, c);
    while (length && isspace((unsigned char)text[0])) {
        text++;
        length--;
    }
    while (length && isspace((unsigned char)text[length - 1])) length--;
    const int number = class_number(text, length);
    if (number >= 0) return label_of_number(r, c, sample, number, text, length);
    if (!c->count || !length) return CLASS_NONE;
    int label = class_of_name(c, text, length);
    if (label == CLASS_NONE) label = label_of_wordnet_id(r, c, text, length);
    return label >= 0 ? label : label_none(&r->unknown, sample, text, length);
}

// After samples have moved in the list: moved[i - first] is the new index of sample i.
static inline void labels_renumber(LabelReading *r, int64_t first, const int64_t *moved) {
    LabelNote *notes[2] = {&r->beyond, &r->unknown};
    for (int i = 0; i < 2; i++)
        if (notes[i]->count && notes[i]->sample >= first) notes[i]->sample = moved[notes[i]->sample - first];
    for (size_t i = 0; i < r->doubtful_count; i++)
        if (r->doubtful[i].sample >= first) r->doubtful[i].sample = moved[r->doubtful[i].sample - first];
}

static inline void labels_free(LabelReading *r) {
    free(r->doubtful);
    free(r->imagenet);
    memset(r, 0, sizeof *r);
}

#endif
