// Files of class names and of prompts: sentences with a place for the name of a class, which are what
// zero-shot classification asks the text tower, and the captions of training on labels (FLYP, Goyal et al.
// 2023).
//
// A file has one name or prompt a line, or it is a list as JSON or Python has it, with open_clip's
// `lambda c: f'a photo of a {c}.'`. What could be read in another way ends the program with one line.
#ifndef CLIPC_PROMPTS_H
#define CLIPC_PROMPTS_H

#include "clipc/base/utils.h"      // die, warn, StringList
#include "data/imagenet_classes.h" // imagenet_classes

#include <ctype.h>
#include <jansson.h>

#define DEFAULT_TEMPLATE "a photo of a {}." // where no --templates are given
#define PROMPT_MOST_BYTES 65536             // of a name or template; a prompt is cut off after as many

// ---------------------------------------------------------------- lists of Python and JSON

// What a text is that may be Python: not Python; a list of strings; Python, but not a list of strings.
typedef enum { PYTHON_NOT, PYTHON_LIST, PYTHON_OTHER } PythonKind;

typedef struct {
    const char *at;     // what is read next
    StringList *out;    // the strings
    int depth;          // of brackets
    bool certain;       // its beginning cannot be a line of plain text
    bool after_string;  // and no comma yet
    char parameter[64]; // of the lambda read last
    char *string;       // scratch, as long as the text
} PythonReader;

static inline bool is_word_byte(char c) { return isalnum((unsigned char)c) || c == '_' || (c & 0x80); }

// The length of the identifier at the beginning of a text, 0 where there is none.
static inline size_t identifier_length(const char *text) {
    size_t n = 0;
    while (!isdigit((unsigned char)text[0]) && is_word_byte(text[n])) n++;
    return n;
}

// The length of f, r, u in front of a quotation mark; -1 where no string begins here.
static inline int python_prefix(const char *text) {
    int n = 0;
    while (n < 2 && text[n] && strchr("fFrRuU", text[n])) n++;
    return text[n] == '\'' || text[n] == '"' ? n : -1;
}

// Reads a string literal with the place {parameter} as {}; false for what a list of prompts does not need:
// triple quotes, escapes other than quotes, an open end.
static inline bool python_string(PythonReader *r) {
    const char *s = r->at + python_prefix(r->at), quote = *s++;
    const size_t name = strlen(r->parameter);
    char *text = r->string;
    size_t n = 0;
    for (; *s && *s != quote && *s != '\n'; s++) {
        const bool place = name && *s == '{' && strncmp(s + 1, r->parameter, name) == 0 && s[1 + name] == '}';
        if (*s == '\\' && strchr("'\"\\", s[1]) && s[1]) s++;
        else if (*s == '\\') break;
        text[n++] = *s;
        if (place) s += name;
    }
    text[n] = 0;
    const bool whole = *s == quote && !(n == 0 && s[1] == quote);
    if (whole) string_list_add(r->out, text);
    r->at = s + 1;
    r->after_string = true;
    return whole;
}

// NAME = before the list, lambda NAME:, and behind a string .format(NAME) or % NAME. False for any other
// code.
static inline bool python_code(PythonReader *r) {
    char word[64], near[96]; // sscanf() measures the whole text that it is given
    int n = 0;
    snprintf(near, sizeof near, "%.*s", (int)sizeof near - 1, r->at);
    if (r->after_string) {
        if (sscanf(near, ".format(%63[A-Za-z0-9_])%n", word, &n) == 1 && n) r->at += n;
        else if (sscanf(near, "%% %63[A-Za-z0-9_]%n", word, &n) == 1 && n) r->at += n;
        else if (sscanf(near, "%% (%63[A-Za-z0-9_])%n", word, &n) == 1 && n) r->at += n;
        else return false;
        return true;
    }
    if (sscanf(near, "lambda %63[A-Za-z0-9_] :%n", r->parameter, &n) == 1 && n) {
        r->certain = true;
        r->at += n;
        return true;
    }
    const size_t length = identifier_length(r->at), blanks = strspn(r->at + length, " \t");
    if (!length || r->at[length + blanks] != '=' || r->out->count || r->depth) return false;
    r->certain = true;
    r->at += length + blanks + 1;
    return true;
}

// One token; false where it does not belong to a list of strings.
static inline bool python_token(PythonReader *r) {
    const char c = *r->at;
    if (python_prefix(r->at) >= 0) {
        r->certain |= python_prefix(r->at) > 0;
        return !r->after_string && python_string(r);
    }
    if (!strchr("[](),", c)) return python_code(r);
    r->certain |= c == '[' || c == '(';
    r->depth += c == '[' || c == '(' ? 1 : c == ',' ? 0 : -1;
    r->after_string = r->after_string && c != ',';
    r->at++;
    return r->depth >= 0;
}

// Adds the strings of a Python list, tuple, or lines of strings.
static inline PythonKind python_strings(const char *text, StringList *out) {
    PythonReader r = {text, out, 0, false, false, "", (char *)malloc_check(strlen(text) + 1)};
    bool good = true;
    while (good && *(r.at += strspn(r.at, " \t\r"))) {
        if (*r.at == '\n') {
            r.after_string &= r.depth > 0; // outside of brackets a line ends what it says
            r.at++;
        } else if (*r.at == '#') r.at += strcspn(r.at, "\n");
        else good = python_token(&r);
    }
    free(r.string);
    if (good && out->count && !r.depth) return PYTHON_LIST;
    return r.certain ? PYTHON_OTHER : PYTHON_NOT;
}

// Adds the strings of a JSON text: of a list, or of an object with one list. False where it is not JSON; JSON
// of another form ends the program.
static inline bool json_strings(const char *path, const char *what, const char *text, StringList *out) {
    json_t *root = json_loads(text, 0, NULL), *list = root;
    if (!root) return false;
    if (json_object_size(root) > 1)
        die(EXIT_USAGE,
            "%s: holds %zu entries, '%s' and others, not one list of %s; write that list alone to a file",
            path, json_object_size(root), json_object_iter_key(json_object_iter(root)), what);
    if (json_is_object(root)) list = json_object_iter_value(json_object_iter(root));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *item = json_string_value(json_array_get(list, i));
        if (!item)
            die(EXIT_USAGE, "%s: entry %zu of its list is not a text; write a list of %s", path, i, what);
        string_list_add(out, item);
    }
    if (!json_is_array(list)) die(EXIT_USAGE, "%s: is JSON without a list; write a list of %s", path, what);
    json_decref(root);
    return true;
}

// ---------------------------------------------------------------- lines

// The lines of a text, stripped of blanks and CRs at both ends, empty ones left out. A line that looks like
// part of a list ends the program: its marks would be taken for words.
static inline void split_lines(const char *path, const char *what, char *text, StringList *out) {
    for (char *line = text, *next; *line; line = next) {
        char *end = line + strcspn(line, "\n");
        next = end + (*end == '\n');
        line += strspn(line, " \t\r");
        while (end > line && strchr(" \t\r", end[-1])) end--;
        if (end <= line) continue;
        *end = 0;
        if (strchr("\"'[", line[0]) && strchr(",]", end[-1]))
            die(EXIT_USAGE,
                "%s: '%.80s' looks like part of a list that cannot be read; write the %s one a line", path,
                line, what);
        string_list_add(out, line);
    }
}

// The entries of a UTF-8 file of `what` ("class names", "templates"): a list in JSON or Python, else its
// lines. A file without entries, or with a NUL byte, ends the program. Free with string_list_free().
static inline StringList entries_read(const char *path, const char *what) {
    StringList out = {NULL, 0, 0};
    size_t length;
    char *file = file_read_all(path, &length), *text = file;
    if (memchr(file, 0, length))
        die(EXIT_USAGE, "%s: holds a NUL byte; save the %s as UTF-8 text, one a line", path, what);
    if (strncmp(text, "\xef\xbb\xbf", 3) == 0) text += 3; // a byte order mark
    const char first = text[strspn(text, " \t\r\n")];
    if (!((first == '[' || first == '{') && json_strings(path, what, text, &out))) {
        const PythonKind kind = python_strings(text, &out);
        if (kind == PYTHON_OTHER)
            die(EXIT_USAGE,
                "%s: begins like Python, but is not one list of plain strings; write the %s one a line", path,
                what);
        if (kind == PYTHON_NOT) {
            string_list_free(&out);
            split_lines(path, what, text, &out);
        }
    }
    free(file);
    if (!out.count) die(EXIT_USAGE, "%s: no %s in it; write one a line", path, what);
    for (size_t i = 0; i < out.count; i++)
        if (strlen(out.list[i]) > PROMPT_MOST_BYTES)
            die(EXIT_USAGE, "%s: '%.80s…' has %zu bytes, at most %d make sense; write the %s one a line",
                path, out.list[i], strlen(out.list[i]), PROMPT_MOST_BYTES, what);
    return out;
}

// ---------------------------------------------------------------- templates

// What stands between braces where the name of a class goes.
static inline bool is_name_place(const char *word, size_t length) {
    static const char *const places[] = {"", "0", "c", "cls", "class", "classname", "class_name", "category",
        "label", "name", "noun", "object"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (strlen(places[i]) == length && memcmp(word, places[i], length) == 0) return true;
    return false;
}

// Writes all places of a template as {}. A word in braces that is not known as a place ends the program.
static inline void template_normalise(const char *path, char *sentence) {
    char *to = sentence;
    for (const char *s = sentence; *s;) {
        const size_t inside = *s == '{' ? strcspn(s + 1, "{}") : 0;
        const bool braces = *s == '{' && s[1 + inside] == '}';
        if (braces && inside && strspn(s + 1, " ") != inside && !is_name_place(s + 1, inside))
            die(EXIT_USAGE, "%s: '%.*s' in '%.80s' is not known as the place of the class name; write {}",
                path, (int)inside + 2, s, s);
        if ((braces && is_name_place(s + 1, inside)) || strncmp(s, "%s", 2) == 0) {
            s += braces ? inside + 2 : 2;
            *to++ = '{';
            *to++ = '}';
        } else *to++ = *s++;
    }
    *to = 0;
}

// Prompts with {} in place of the class name; in the file also {c} and the like, or %s. Without a path:
// DEFAULT_TEMPLATE.
static inline StringList templates_read(const char *path) {
    StringList templates = {NULL, 0, 0};
    if (!path) {
        string_list_add(&templates, DEFAULT_TEMPLATE);
        return templates;
    }
    templates = entries_read(path, "templates");
    for (size_t i = 0; i < templates.count; i++) {
        template_normalise(path, templates.list[i]);
        if (!strstr(templates.list[i], "{}"))
            die(EXIT_USAGE, "%s: no {} in '%.80s'; mark where the class name goes", path, templates.list[i]);
    }
    return templates;
}

// Writes the template with the name in every place to *out, which grows as needed (start with NULL and 0). It
// ends once there are PROMPT_MOST_BYTES: a short file can have a long name in thousands of places.
static inline void template_fill(char **out, size_t *capacity, const char *sentence, const char *name) {
    size_t length = 0, name_length = strlen(name);
    for (;;) {
        const char *place = strstr(sentence, "{}");
        size_t before = place ? (size_t)(place - sentence) : strlen(sentence);
        list_grow((void **)out, capacity, length + before + name_length + 1, 1);
        memcpy(*out + length, sentence, before);
        length += before;
        (*out)[length] = 0;
        if (!place || length >= PROMPT_MOST_BYTES) return;
        memcpy(*out + length, name, name_length);
        length += name_length;
        sentence = place + 2;
    }
}

// ---------------------------------------------------------------- class names

// Is the text like a WordNet id: n and eight digits?
static inline bool is_wordnet_id(const char *text, size_t length) {
    if (length != 9 || text[0] != 'n') return false;
    for (int i = 1; i < 9; i++)
        if (!isdigit((unsigned char)text[i])) return false;
    return true;
}

// The class of ImageNet-1k with this WordNet id, or -1.
static inline int imagenet_class(const char *id, size_t length) {
    int low = 0, high = IMAGENET_CLASSES;
    if (!is_wordnet_id(id, length)) return -1;
    while (low < high) {
        const int middle = (low + high) / 2, order = memcmp(imagenet_classes[middle].id, id, 9);
        if (order == 0) return middle;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return -1;
}

// Does every line begin with its number, from 0 or 1 on, and one of , : ; ) or a tab?
static inline bool lines_are_numbered(const StringList *lines, size_t from) {
    for (size_t i = 0; i < lines->count; i++) {
        char *end;
        if (!isdigit((unsigned char)lines->list[i][0])) return false;
        if (strtoull(lines->list[i], &end, 10) != i + from || !*end || !strchr(",:;)\t", *end)) return false;
    }
    return lines->count > 1;
}

// How many lines begin with a WordNet id and a character of `next` (a NUL: the id alone).
static inline size_t lines_with_ids(const StringList *lines, const char *next, size_t characters) {
    size_t count = 0;
    for (size_t i = 0; i < lines->count; i++) {
        const char *line = lines->list[i];
        count += strlen(line) >= 9 && is_wordnet_id(line, 9) && memchr(next, line[9], characters);
    }
    return count;
}

// Ends the program where the lines hold more than names: it would be asked for.
static inline void classnames_check(const char *path, const StringList *names) {
    if (lines_are_numbered(names, 0) || lines_are_numbered(names, 1))
        die(EXIT_USAGE, "%s: its lines begin with numbers, such as '%.80s'; write the class names alone",
            path, names->list[0]);
    if (lines_with_ids(names, " ,:;\t", 5))
        die(EXIT_USAGE, "%s: its lines begin with WordNet ids, such as '%.80s'; write the class names alone",
            path, names->list[0]);
}

// Replaces WordNet ids, if all names are such, by ImageNet's names; an id that ImageNet-1k does not have ends
// the program.
static inline void wordnet_ids_to_names(const char *path, StringList *names) {
    const size_t ids = lines_with_ids(names, "", 1);
    for (size_t i = 0; ids && i < names->count; i++) {
        const int index = imagenet_class(names->list[i], strlen(names->list[i]));
        if (index < 0)
            die(EXIT_USAGE,
                "%s: '%.80s' is not one of the %d WordNet ids of ImageNet-1k, as '%s' would be, so it has no "
                "name; give --classnames FILE, one name a line",
                path, names->list[i], IMAGENET_CLASSES, imagenet_classes[0].id);
        free(names->list[i]);
        names->list[i] = strdup_check(imagenet_classes[index].name);
    }
}

// Class names, that of label 0 first. Equal names are accepted with a warning: no text can tell such classes
// apart.
static inline StringList classnames_read(const char *path) {
    StringList names = entries_read(path, "class names");
    classnames_check(path, &names);
    wordnet_ids_to_names(path, &names);
    char **sorted = (char **)malloc_check(names.count * sizeof *sorted);
    memcpy(sorted, names.list, names.count * sizeof *sorted);
    qsort(sorted, names.count, sizeof *sorted, compare_strings);
    const char *twice = NULL;
    int repeated = 0;
    for (size_t i = 1; i < names.count; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0) {
            twice = sorted[i];
            repeated++;
        }
    if (twice)
        warn("%s: %d lines repeat an earlier class name, such as '%s'; of equal names the first wins", path,
            repeated, twice);
    free(sorted);
    return names;
}

#endif
