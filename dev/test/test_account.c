// The account of the data (account.h, check.h): a thousand pairs that go wrong in 25 ways, as a folder, a
// table and a tar shard. What is found is what is used and what is passed over, for exactly the reasons that
// were made.
#include "clipc/data/check.h"
#include "dev/test/data_files.h"

enum { PAIRS = 1000, WAYS = 25, EACH = PAIRS / WAYS, SIZE = 8, CONTEXT = 12 };
typedef enum { FOLDER, TABLE, SHARD, LINES, FORMS } Form;

// How a pair goes wrong, why it is passed over in each form (NULL: it is used), and what is noted of it.
typedef struct {
    const char *reason[FORMS], *note[FORMS];
} Way;

#define NONE \
    { NULL, NULL, NULL, NULL }
#define ALL(text) \
    { text, text, text, text }
#define BAD_CAPTION "caption that is not UTF-8"
#define DOTTED "name with a dot before its ending (WebDataset's key ends at the first dot)"
#define REPEATED "repetition of an earlier image with its caption"
#define UNKNOWN_FORMAT "unknown image format"

// clang-format off
static const Way ways[WAYS] = { // a folder, a CSV, a shard, lines of JSON
    {NONE, NONE}, // 0 a good pair
    {NONE, NONE}, // 1 endings in upper case
    {NONE, {NULL, NULL, "sample whose members are apart in the shard", NULL}}, // 2 a PNG called .tif
    {{"missing file", "missing file", "without image", "missing file"}, NONE}, // 3 no image
    {ALL("empty file"), NONE}, // 4
    {ALL(UNKNOWN_FORMAT), NONE}, // 5 an error page
    {{"file of an unknown ending with a caption beside it", UNKNOWN_FORMAT, "without image", UNKNOWN_FORMAT},
        NONE}, // 6 SVG
    {ALL("broken image"), NONE}, // 7 half of a PNG
    {ALL("with too many pixels"), NONE}, // 8
    {{"without caption", "empty caption", "without caption", "without caption"}, NONE}, // 9
    {ALL("empty caption"), NONE}, // 10
    {ALL("empty caption"), NONE}, // 11 blanks
    {ALL(BAD_CAPTION), NONE}, // 12 Latin-1
    {ALL(BAD_CAPTION), NONE}, // 13 UTF-16; tables: Shift-JIS
    {ALL(BAD_CAPTION), NONE}, // 14 a NUL; CSV: a surrogate
    {NONE, NONE}, // 15 ._NAME beside it
    {NONE, NONE}, // 16 NAME.sha256 beside it
    {{"caption without an image", "without image", "without image", "without image"},
        NONE}, // 17 a caption alone
    {{NULL, NULL, DOTTED, NULL}, NONE}, // 18 dots in the name
    {{"unreadable file", "row with more fields than the header; quote what holds a separator",
         "member that is a link or a device", "without caption"}, NONE}, // 19 JSON: a list
    {{NULL, "row with fewer fields than the header", "member without a key", "row with broken JSON"},
        NONE}, // 20
    {{NULL, "row with text after a closing quotation mark", "sample with neither image nor caption",
         "row that is not an object"}, NONE}, // 21
    {NONE, {NULL, REPEATED, REPEATED, REPEATED}}, // 22 twice; folder: once
    {NONE, ALL("caption cut at the context length")}, // 23
    {NONE, {NULL, "row with a quotation mark that is never closed; it is taken literally", NULL, NULL}}, // 24
};
// clang-format on

// ---------------------------------------------------------------- making them

typedef struct {
    const char *bytes;
    size_t length;
} Blob;

// The image file of pair i.
static Blob image_of(int i) {
    static uint8_t png[1 << 16];
    const int way = i % WAYS;
    const Blob empty = {"", 0}, page = {"<html>404</html>", 16}, svg = {"<svg xmlns='x'/>", 16};
    if (way == 4) return empty;
    if (way == 5) return page;
    if (way == 6) return svg;
    size_t n = make_png(png, sizeof png, i, way == 8 ? 120 : 8, way == 8 ? 90 : 8);
    const Blob out = {(const char *)png, way == 7 ? n / 2 : n};
    return out;
}

static Blob caption_of(int i, Form form) {
    static char text[256];
    int n = snprintf(text, sizeof text, "a red square, number %d", i);
    const Blob empty = {"", 0}, blank = {" \t ", 3}, latin = {"un caf\xe9 noir", 12};
    const Blob wide = {"\xff\xfe"
                       "a\0 \0b\0",
        8};
    const Blob shift = {"\x83\x8c\x83\x62\x83\x68", 6}, nul = {"a\0b", 3},
               surrogate = {"a \xed\xa0\x80 b", 7};
    switch (i % WAYS) {
    case 9:
    case 10: return empty;
    case 11: return blank;
    case 12: return latin;
    case 13: return form == TABLE || form == LINES ? shift : wide;
    case 14: return form == TABLE ? surrogate : nul;
    case 23:
        n += snprintf(text + n, sizeof text - (size_t)n, " and a blue one and a green one and more");
        break;
    }
    const Blob out = {text, (size_t)n};
    return out;
}

static const char *ending_of(int way) {
    static const char *const endings[] = {[1] = "PNG", [2] = "tif", [6] = "svg", [5] = "jpg", [7] = "jpeg"};
    return way < 8 && endings[way] ? endings[way] : "png";
}

static void make_folder(void) {
    char name[64], other[80];
    make_directories(at("folder"));
    for (int i = 0; i < PAIRS; i++) {
        const int way = i % WAYS;
        const Blob image = image_of(i), caption = caption_of(i, FOLDER);
        snprintf(name, sizeof name, "folder/%04d%s.%s", i, way == 18 ? ".v1.2" : "", ending_of(way));
        if (way == 3 && symlink("nowhere", at(name))) die(EXIT_RUNTIME, "symlink");
        if (way == 19 && mkfifo(at(name), 0600)) die(EXIT_RUNTIME, "mkfifo");
        if (way != 3 && way != 17 && way != 19) write_file(at(name), image.bytes, image.length);
        snprintf(
            other, sizeof other, "folder/%s%04d.png%s", way == 15 ? "._" : "", i, way == 16 ? ".sha256" : "");
        if (way == 15 || way == 16) write_text(at(other), "x");
        snprintf(
            other, sizeof other, "folder/%04d%s.%s", i, way == 18 ? ".v1.2" : "", way == 1 ? "TXT" : "txt");
        if (way != 9) write_file(at(other), caption.bytes, caption.length);
    }
}

static void make_table(void) {
    char name[64];
    make_directories(at("table"));
    FILE *f = fopen_check(at("table/t.csv"), "wb");
    fprintf(f, "filepath,title,note\n");
    for (int i = 0; i < PAIRS; i++) {
        const int way = i % WAYS;
        const Blob image = image_of(i), caption = caption_of(i, TABLE);
        snprintf(name, sizeof name, "table/%04d.%s", i, ending_of(way));
        if (way != 3) write_file(at(name), image.bytes, image.length);
        for (int k = 0; k < (way == 22 ? 2 : 1); k++) {
            fprintf(f, "%s%s", way == 17 ? "" : name + strlen("table/"), way == 20 ? "" : ",");
            if (way == 20) fprintf(f, "\n");
            else if (way == 21) fprintf(f, "\"%d inches\" wide,\n", i);
            else if (way == 24 && i == PAIRS - 1) fprintf(f, "\"never closed,\n");
            else if (way == 19) fprintf(f, "%.*s,on the left,and more\n", (int)caption.length, caption.bytes);
            else fprintf(f, "\"%.*s\",\n", (int)caption.length, caption.bytes);
        }
    }
    fclose(f);
}

// The same images with a table in JSON.
static void make_lines(void) {
    FILE *f = fopen_check(at("table/t.jsonl"), "wb");
    for (int i = 0; i < PAIRS; i++) {
        const int way = i % WAYS;
        const Blob caption = caption_of(i, LINES);
        for (int k = 0; k < (way == 22 ? 2 : 1); k++) {
            if (way == 20) fprintf(f, "{\"file_name\": \"%04d.png\", \"text\": \n", i);
            else if (way == 21) fprintf(f, "[%d]\n", i);
            else if (way == 17) fprintf(f, "{\"text\": \"alone\"}\n");
            else fprintf(f, "{\"file_name\": \"%04d.%s\", \"id\": %d", i, ending_of(way), i);
            if (way == 14) fprintf(f, ", \"text\": \"a\\u0000b\"}\n");
            else if (way == 19) fprintf(f, ", \"text\": [\"a list\"]}\n");
            else if (way == 9) fprintf(f, "}\n");
            else if (way == 11) fprintf(f, ", \"text\": \" \\t \"}\r\n");
            else if (way < 17 || way == 18 || way > 21)
                fprintf(f, ", \"text\": \"%.*s\"}\n", (int)caption.length, caption.bytes);
        }
    }
    fclose(f);
}

static void add_link(struct archive *a, const char *name) {
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, name);
    archive_entry_set_filetype(e, AE_IFLNK);
    archive_entry_set_symlink(e, "0000.png");
    if (archive_write_header(a, e) != ARCHIVE_OK) die(EXIT_RUNTIME, "%s", archive_error_string(a));
    archive_entry_free(e);
}

static void make_shard(void) {
    struct archive *a;
    char name[64];
    tar_plain(at("shard.tar"), &a);
    for (int i = 0; i < PAIRS; i++) {
        const int way = i % WAYS;
        const Blob image = image_of(i);
        const bool pair = way < 19 || way > 21;
        snprintf(name, sizeof name, "%s%04d.png", way == 15 ? "._" : "", i);
        if (way == 15) tar_add_text(a, name, "x");
        snprintf(name, sizeof name, "%04d", i);
        if (way == 19) add_link(a, name);
        if (way == 20) tar_add_text(a, name, "no key");
        snprintf(name, sizeof name, "%04d.json", i);
        if (way == 21) tar_add_text(a, name, "{}");
        for (int k = 0; k < (way == 22 ? 2 : 1); k++) {
            snprintf(name, sizeof name, "%04d%s.%s", i, way == 18 ? ".v1.2" : "", ending_of(way));
            if (pair && way != 3 && way != 17) tar_add(a, name, image.bytes, image.length);
            if (way == 16) tar_add_text(a, "SHA256SUMS", "x");
            const Blob caption = caption_of(i, SHARD);
            snprintf(name, sizeof name, "%04d%s.%s", i, way == 18 ? ".v1.2" : "", way == 1 ? "TXT" : "txt");
            if (pair && way != 9 && way != 2) tar_add(a, name, caption.bytes, caption.length);
        }
    }
    for (int i = 2; i < PAIRS; i += WAYS) { // far from their images
        const Blob caption = caption_of(i, SHARD);
        snprintf(name, sizeof name, "%04d.txt", i);
        tar_add(a, name, caption.bytes, caption.length);
    }
    tar_finish(a);
}

// ---------------------------------------------------------------- counting them

static int64_t expected_count(Form form, const char *text, AccountKind kind) {
    int64_t n = 0;
    for (int w = 0; w < WAYS; w++) {
        const char *its = kind == PASSED_OVER ? ways[w].reason[form] : ways[w].note[form];
        if (its && !strcmp(its, text)) n += w == 24 && form == TABLE ? 1 : EACH;
    }
    return n;
}

static void expect_account(const Account *a, Form form, const char *what) {
    int64_t passed_over = 0, twice = form == FOLDER ? 0 : EACH,
            system_files = form == FOLDER ? EACH : 2 * EACH;
    for (int w = 0; w < WAYS; w++) passed_over += ways[w].reason[form] ? EACH : 0;
    EXPECT(a->found == PAIRS + twice, "%s: %d found", what, (int)a->found);
    EXPECT(a->passed_over == passed_over, "%s: %d passed over", what, (int)a->passed_over);
    EXPECT(a->system_files == (form == TABLE || form == LINES ? 0 : system_files), "%s: %d", what,
        (int)a->system_files);
    EXPECT(a->other_files == 0, "%s: %d", what, (int)a->other_files);
    int64_t sum = 0;
    for (size_t i = 0; i < a->count; i++) {
        const AccountLine *l = &a->lines[i];
        EXPECT(l->count == expected_count(form, l->one, l->kind), "%s: %d %s", what, (int)l->count, l->many);
        EXPECT(l->first && l->first[0], "%s: %s", what, l->one);
        sum += l->kind == PASSED_OVER ? l->count : 0;
    }
    EXPECT(sum == passed_over, "%s: %d", what, (int)sum);
    for (int w = 0; w < WAYS; w++) { // none is missing
        const Way *y = &ways[w];
        if (y->reason[form])
            EXPECT(account_count(a, PASSED_OVER, y->reason[form]) > 0, "%s: way %d", what, w);
        if (y->note[form]) EXPECT(account_count(a, USED, y->note[form]) > 0, "%s: way %d", what, w);
    }
}

static LoaderConfig loading(const Tokenizer *t, bool one_pass) {
    LoaderConfig c = small_batches(2, SIZE, NULL);
    c.tokenizer = t;
    c.context = CONTEXT;
    c.one_pass = one_pass;
    return c;
}

static const char *form_path(Form form) {
    static const char *const paths[FORMS] = {"folder", "table/t.csv", "shard.tar", "table/t.jsonl"};
    return at(paths[form]);
}

// The check of everything; the quick check and then an epoch; two epochs without a word in between: one
// account.
static void test_a_thousand_pairs_are_accounted_for(Form form) {
    char error[256];
    Tokenizer *t = tokenizer_create(tokenizer_builtin_merges, tokenizer_builtin_merges_length, error);
    DatasetConfig dc = dataset_config_default();
    const LoaderConfig pass = loading(t, true);

    Dataset d = dataset_open(form_path(form), &dc, 2);
    dataset_check(&d, &pass, 2);
    expect_account(&d.sources[0].account, form, "everything");
    dataset_free(&d);

    d = dataset_open(form_path(form), &dc, 2);
    dataset_check(&d, NULL, 2);
    const Account *a = &d.sources[0].account;
    EXPECT(account_count(a, PASSED_OVER, "broken image") == 0 &&
           account_count(a, PASSED_OVER, BAD_CAPTION) == 3 * EACH);
    Batch b = batch_create(&pass);
    Loader *l = loader_create(&d, &pass);
    int64_t used = 0;
    for (int epoch = 0; epoch < 2; epoch++) {
        loader_start_epoch(l, epoch, 0);
        used = 0;
        for (int n; (n = loader_next(l, &b)) > 0; used += n) {}
        expect_account(a, form, epoch ? "second epoch" : "quick check and an epoch");
    }
    EXPECT(used == a->found - a->passed_over, "%d", (int)used);
    EXPECT(used == d.count - a->passed_over + (a->found - d.count)); // those that never were in the list
    loader_free(l);
    batch_free(&b);
    dataset_free(&d);
    tokenizer_free(t);
}

static void print_case(const void *form) {
    Logger log;
    logger_open(&log, NULL, false);
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(form_path(*(const Form *)form), &dc, 2);
    dataset_check(&d, NULL, 2);
    for (int i = 0; i < 3; i++) dataset_print_accounts(&d, &log);
    dataset_free(&d);
}

static void test_the_table_names_the_first_of_each_kind(void) {
    const Form forms[] = {FOLDER, TABLE, SHARD};
    child_run(print_case, &forms[1]);
    const char *once = strstr(child.text, "rows found");
    EXPECT(once && !strstr(once + 1, "rows found"), "%s", child.text);
    EXPECT(strstr(child.text, "t.csv: 1040 rows found, 520 used, 520 passed over\n"), "%s", child.text);
    EXPECT(strstr(child.text, "40 missing files (the first: ") && strstr(child.text, "t.csv:0003.png)"), "%s",
        child.text);
    EXPECT(strstr(child.text, "t.csv:0012.png, which fits latin-1 or cp1252)"), "%s", child.text);
    EXPECT(strstr(child.text, "t.csv, line 21)"), "%s", child.text);
    child_run(print_case, &forms[0]);
    EXPECT(strstr(child.text, "besides 40 of the system"), "%s", child.text);
    child_run(print_case, &forms[2]);
    EXPECT(strstr(child.text, "besides 80 of the system"), "%s", child.text);
    EXPECT(strstr(child.text, "shard.tar:0018.v1.2."), "%s", child.text);
}

// ---------------------------------------------------------------- encodings

static void test_encodings_are_named(void) {
    const struct {
        const char *text;
        size_t length;
        const char *fits; // NULL: none; "": it is UTF-8
    } cases[] = {{"plain words of ASCII, long enough for a word", 44, ""}, {"caf\xc3\xa9", 5, ""},
        {"", 0, ""}, {"\xef\xbb\xbf mark", 8, ""}, {"caf\xe9 noir", 9, "latin-1 or cp1252"},
        {"\x93quoted\x94 words", 14, "cp1252"},
        {"\xff\xfe"
         "a\0",
            4, "UTF-16LE"},
        {"\xfe\xff\0a", 4, "UTF-16BE"}, {"a\0b\0c\0", 6, "UTF-16LE"}, {"\0a\0b\0c", 6, "UTF-16BE"},
        {"\xff\xfe\0\0a\0\0\0", 8, "UTF-32"}, {"\x83\x8c\x83\x62\x83\x68", 6, NULL},
        {"\xe9\xe8\xea\xe0 a", 6, NULL}, {"ab\0", 3, NULL},
        {"long enough for a word \0 of eight bytes", 39, NULL}, {"\xed\xa0\x80 x y z", 9, NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const bool utf8 = is_utf8_text(cases[i].text, cases[i].length);
        const char *fits = utf8 ? "" : encoding_that_fits(cases[i].text, cases[i].length);
        EXPECT(fits == cases[i].fits || (fits && cases[i].fits && !strcmp(fits, cases[i].fits)),
            "case %d: %s", (int)i, fits ? fits : "none");
    }
    const char *cut = "ab\xc3\xa9\xf0\x9f\x98\x80";
    const size_t whole[] = {0, 1, 2, 2, 4, 4, 4, 4, 8};
    for (size_t n = 0; n <= 8; n++)
        EXPECT(utf8_whole_length(cut, n) == whole[n], "%d: %d", (int)n, (int)utf8_whole_length(cut, n));
}

int main(void) {
    make_test_folder("test_account");
    make_folder();
    make_table();
    make_shard();
    make_lines();
    RUN(test_a_thousand_pairs_are_accounted_for, FOLDER);
    RUN(test_a_thousand_pairs_are_accounted_for, TABLE);
    RUN(test_a_thousand_pairs_are_accounted_for, SHARD);
    RUN(test_a_thousand_pairs_are_accounted_for, LINES);
    RUN(test_the_table_names_the_first_of_each_kind);
    RUN(test_encodings_are_named);
    remove_test_folder();
    return test_report();
}
