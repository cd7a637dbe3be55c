// Sentences with a place for the name of a class: what zero-shot classification asks the text tower, and the
// captions of training on labels (FLYP, Goyal et al. 2023).
#ifndef CLIPC_TEMPLATES_H
#define CLIPC_TEMPLATES_H

#include "clipc/base/utils.h"      // die, file_read_all, list_grow
#include "clipc/data/webdataset.h" // StringList

#define DEFAULT_TEMPLATE "a photo of a {}." // where no --templates are given

// The lines of a file of `what` ("class names", "templates") in UTF-8, without blanks at their ends (a CR is
// one), empty ones left out. A file without a single line, or with a NUL in it, ends the program. Free with
// string_list_free().
static inline StringList lines_read(const char *path, const char *what) {
    StringList lines = {NULL, 0, 0};
    size_t length;
    char *text = file_read_all(path, &length), *line = text, *next;
    if (memchr(text, 0, length))
        die(EXIT_USAGE, "%s: holds a NUL byte; save the %s as UTF-8 text, one a line", path, what);
    if (strncmp(text, "\xef\xbb\xbf", 3) == 0) line += 3; // a byte order mark
    for (; *line; line = next) {
        char *end = line + strcspn(line, "\n");
        next = end + (*end == '\n');
        line += strspn(line, " \t\r");
        while (end > line && strchr(" \t\r", end[-1])) end--;
        if (end <= line) continue;
        *end = 0;
        string_list_add(&lines, line);
    }
    free(text);
    if (!lines.count) die(EXIT_USAGE, "%s: no %s in it; write one a line", path, what);
    return lines;
}

// Where in a template the class name goes, and how many bytes to leave out there; NULL when there is no such
// place.
static inline const char *template_slot(const char *sentence, int *bytes) {
    const char *a = strstr(sentence, "{}"), *b = strstr(sentence, "{c}");
    *bytes = a && (!b || a < b) ? 2 : 3;
    return *bytes == 2 ? a : b;
}

// Templates, one a line; `{}` stands for the class name, `{c}` (open_clip's own files) too. Without a path:
// DEFAULT_TEMPLATE.
static inline StringList templates_read(const char *path) {
    StringList templates = {NULL, 0, 0};
    if (!path) {
        string_list_add(&templates, DEFAULT_TEMPLATE);
        return templates;
    }
    templates = lines_read(path, "templates");
    for (size_t i = 0; i < templates.count; i++) {
        int bytes;
        if (!template_slot(templates.list[i], &bytes))
            die(EXIT_USAGE, "%s: no {} in '%.80s'; mark where the class name goes", path, templates.list[i]);
    }
    return templates;
}

// The template with the name in every slot, into *out, which grows as needed (start with NULL and 0).
static inline void template_fill(char **out, size_t *capacity, const char *sentence, const char *name) {
    size_t length = 0, name_length = strlen(name);
    for (int bytes;;) {
        const char *slot = template_slot(sentence, &bytes);
        size_t before = slot ? (size_t)(slot - sentence) : strlen(sentence);
        list_grow((void **)out, capacity, length + before + name_length + 1, 1);
        memcpy(*out + length, sentence, before);
        length += before;
        (*out)[length] = 0;
        if (!slot) return;
        memcpy(*out + length, name, name_length);
        length += name_length;
        sentence = slot + bytes;
    }
}

#endif
