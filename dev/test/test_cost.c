// What reading costs is in proportion to the bytes read, or the file is refused (doc/limits.md): the worst
// captions, lists, tables, shards and JSON that we could think of.
#include "dev/test/data_files.h"

#include <sys/resource.h>
#include <time.h>

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SLOWER 10
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || __has_feature(thread_sanitizer)
#define SLOWER 10
#endif
#endif
#ifndef SLOWER
#define SLOWER 1
#endif

enum { MEGABYTE = 1000000 };

static double processor_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

#define EXPECT_CHEAP(start, seconds, what)                                                             \
    EXPECT(processor_seconds() - (start) < (seconds)*SLOWER, "%s: %.2f s instead of %g at most", what, \
        processor_seconds() - (start), (double)(seconds)*SLOWER)

// `head`, then `unit` again and again up to about `bytes`, then `tail`. The caller frees it.
static char *repeated(const char *head, const char *unit, const char *tail, size_t bytes) {
    const size_t n = strlen(unit), start = strlen(head);
    char *out = (char *)malloc_check(start + bytes + strlen(tail) + n + 1);
    memcpy(out, head, start);
    size_t at_byte = start;
    for (; at_byte + n <= bytes; at_byte += n) memcpy(out + at_byte, unit, n);
    memcpy(out + at_byte, tail, strlen(tail) + 1);
    return out;
}

static void test_captions_and_words_of_64_kilobytes(void) {
    // head, unit
    static const char *const cases[][2] = {{"&", "amp;"}, {"&#", "1"}, {"", "&#6"}, {"", "a"}, {"", "!?"},
        {"a", "\xcc\x81"}, {"", "a\xcc\x81\xcc\xa3"}, {"a", "Σ'"}, {"", "\x1b[1;"}, {"", "Ã©"}, {"x€", "Ã©é"},
        {"", "ÃÂ"}, {"", "ÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢"}, {"", "\xc2\x85"}, {"", "ｶﾞ"}, {"", "ﷺ"},
        {"", "<start_of_tex"}};
    char error[256];
    int ids[77];
    Tokenizer *t = tokenizer_create(tokenizer_builtin_merges, tokenizer_builtin_merges_length, error);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = repeated(cases[i][0], cases[i][1], "", CAPTION_MOST_BYTES);
        const double start = processor_seconds();
        tokenizer_encode(t, text, strlen(text), ids, 77);
        EXPECT_CHEAP(start, 0.6, cases[i][1]);
        free(text);
    }
    Rand r = rand_for(1, 0, 0);
    char *word = repeated("", "a", "", CAPTION_MOST_BYTES);
    for (int i = 0; i < CAPTION_MOST_BYTES; i++) word[i] = (char)('a' + rand_u64(&r) % 26);
    const double start = processor_seconds();
    tokenizer_encode(t, word, CAPTION_MOST_BYTES, ids, 77);
    EXPECT_CHEAP(start, 2, "a word of random letters");
    free(word);
    tokenizer_free(t);
}

static void call_classnames_read(const void *path) {
    StringList names = classnames_read((const char *)path);
    string_list_free(&names);
}

static void test_lists_of_names_of_a_megabyte(void) {
    // head, unit, tail
    static const char *const cases[][3] = {{"['a',", "'a',", "]"}, {"[", "'{}'.format(c),", "]"},
        {"[", "lambda c: f'{c}',", "]"}, {"", "a\n", ""}, {"[", "\"a\",", "\"a\"]"}, {"['a',\n", "#\n", "]"},
        {"['a',", "[", ""}, {"", "[", ""}, {"", "{\"a\":", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = repeated(cases[i][0], cases[i][1], cases[i][2], MEGABYTE);
        write_text(at("list.txt"), text);
        struct rusage before, after;
        getrusage(RUSAGE_CHILDREN, &before);
        child_run(call_classnames_read, at("list.txt"));
        getrusage(RUSAGE_CHILDREN, &after);
        EXPECT(child.code == 0 || (child.code == EXIT_USAGE && strchr(child.text, '\n')), "%s: %d",
            cases[i][1], child.code);
        const double seconds = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec) +
                               1e-6 * (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec);
        EXPECT(seconds < 0.8 * SLOWER, "%s: %.2f s", cases[i][1], seconds);
        free(text);
    }
}

static void test_names_and_prompts_have_a_length(void) {
    char *name = repeated("", "n", "", PROMPT_MOST_BYTES), *prompt = NULL;
    size_t capacity = 0;
    write_text(at("names.txt"), name);
    EXPECT(child_run(call_classnames_read, at("names.txt")) == 0, "%s", child.text);
    char *places = repeated("", "{}", "", PROMPT_MOST_BYTES);
    template_fill(&prompt, &capacity, places, name);
    EXPECT(strlen(prompt) >= PROMPT_MOST_BYTES && strlen(prompt) <= 2 * PROMPT_MOST_BYTES, "%zu bytes",
        strlen(prompt));
    free(name);
    name = repeated("", "n", "n", PROMPT_MOST_BYTES);
    write_text(at("names.txt"), name);
    child_run(call_classnames_read, at("names.txt"));
    EXPECT(child_refused("has 65537 bytes"), "%s", child.text);
    free(prompt);
    free(places);
    free(name);
}

static void test_tables_of_a_megabyte(void) {
    // head, unit
    static const char *const cases[][2] = {{"filepath,title\n", "a,b\n"}, {"filepath,title\na,", "b"},
        {"filepath,title\n", "a,"}, {"filepath,title\n\"", "a\n"}, {"filepath,title\n", "\""},
        {"filepath,title\n", ",\""}, {"filepath,title\n", "\"\","}, {"filepath,title\n", "\"a,\"\"b\n"},
        {"filepath,title", ",a"}, {"filepath,title", ",\""}, {"filepath,title\"", "\"\""}};
    static const char *const names[] = {"filepath", "title"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = repeated(cases[i][0], cases[i][1], "", MEGABYTE);
        write_text(at("table.csv"), text);
        const double start = processor_seconds();
        CsvReader r;
        csv_open(&r, at("table.csv"), 0, names, 2);
        while (csv_read_row(&r)) {}
        EXPECT(r.at == r.length, "%s: %zu of %zu", cases[i][1], r.at, r.length);
        EXPECT_CHEAP(start, 0.5, cases[i][1]);
        free(r.text);
        free(r.fields);
        free(text);
    }
}

static void test_json_captions_of_a_megabyte(void) {
    static const char *const cases[][3] = {{"", "[", ""}, {"", "{\"a\":", ""}, {"[", "0,", "0]"},
        {"{\"caption\":\"", "a", "\"}"}, {"{", "\"a\":0,", "\"b\":0}"}, {"{\"caption\":", "9", "}"},
        {"{\"caption\":0.", "9", "}"}, {"{\"caption\":\"", "\\u0041", "\"}"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = repeated(cases[i][0], cases[i][1], cases[i][2], MEGABYTE);
        ByteBuffer buffer = {(uint8_t *)text, strlen(text), MEGABYTE};
        const double start = processor_seconds();
        sample_json_caption(&buffer, "caption");
        EXPECT(buffer.bytes <= MEGABYTE + 100, "%zu", buffer.bytes);
        EXPECT_CHEAP(start, 0.5, cases[i][1]);
        free(text);
    }
}

// A member of zeros, stored as a hole or not.
static void write_zeros(const char *path, ArchiveOption filter, int64_t bytes, bool hole) {
    static char zeros[MEGABYTE];
    struct archive *a = tar_create(path, archive_write_set_format_pax, filter);
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, "a.jpg");
    archive_entry_set_size(e, bytes);
    archive_entry_set_filetype(e, AE_IFREG);
    if (hole) archive_entry_sparse_add_entry(e, bytes - 1, 1);
    if (archive_write_header(a, e) != ARCHIVE_OK) die(EXIT_RUNTIME, "%s", archive_error_string(a));
    for (int64_t left = bytes; left > 0; left -= MEGABYTE)
        archive_write_data(a, zeros, (size_t)min_i64(left, MEGABYTE));
    archive_entry_free(e);
    tar_finish(a);
}

static void test_shards_do_not_inflate_without_end(void) {
    OpenCase c = open_of(at("x.tar.gz"));
    write_zeros(at("x.tar.gz"), archive_write_add_filter_gzip, INFLATION_FREE + 8 * MEGABYTE, false);
    child_run(open_case, &c);
    EXPECT(child.code == EXIT_USAGE && strstr(child.text, "inflate to more than"), "%s", child.text);
    c = open_of(at("x.tar"));
    write_zeros(at("x.tar"), archive_write_add_filter_none, INFLATION_FREE + 8 * MEGABYTE, true);
    child_run(open_case, &c);
    EXPECT(child.code == EXIT_USAGE && strstr(child.text, "inflate to more than"), "%s", child.text);
    write_zeros(at("x.tar"), archive_write_add_filter_none, INFLATION_FREE + 8 * MEGABYTE, false);
    child_run(open_case, &c);
    EXPECT(child.code == 0, "a member that is stored as it is has no bound: %s", child.text);
}

static void call_shard_list(const void *spec) {
    StringList shards = shard_list((const char *)spec);
    string_list_free(&shards);
}

static void test_braces_have_a_bound(void) {
    static const char *const cases[] = {"{0..999999999}", "{0..999}{0..999}{0..9}", "{0..999999}{a,b}",
        "{a,{b,{c,{d,{e,{f,{g,{h,{i,{j,k}}}}}}}}}}",
        "{0..99}{0..99}{0..99}{0..99}{0..99}{0..99}{0..99}{0..99}"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        child_run(call_shard_list, cases[i]);
        EXPECT(child_refused("more than"), "%s: %s", cases[i], child.text);
    }
}

int main(void) {
    make_test_folder("test_cost");
    RUN(test_captions_and_words_of_64_kilobytes);
    RUN(test_lists_of_names_of_a_megabyte);
    RUN(test_names_and_prompts_have_a_length);
    RUN(test_tables_of_a_megabyte);
    RUN(test_json_captions_of_a_megabyte);
    RUN(test_shards_do_not_inflate_without_end);
    RUN(test_braces_have_a_bound);
    remove_test_folder();
    return test_report();
}
