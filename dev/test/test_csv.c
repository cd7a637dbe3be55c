// Tables (csv.h, dataset_csv.h) and the braces in the names of shards (webdataset.h), on files in a temporary
// folder.
#include "dev/test/data_files.h"

// ---------------------------------------------------------------- CSV

// The rows of `text` as "a|b;c|d", the header included.
static const char *csv_shown(const char *text, char separator) {
    static char shown[1024];
    size_t n = 0;
    CsvReader r;
    write_text(at("shown.csv"), text);
    csv_open(&r, at("shown.csv"), separator, NULL, 0);
    shown[0] = 0;
    do {
        for (int i = 0; i < r.count; i++)
            n += (size_t)snprintf(shown + n, sizeof shown - n, "%s%s",
                i   ? "|"
                : n ? ";"
                    : "",
                r.fields[i].start);
    } while (csv_read_row(&r));
    free(r.text);
    free(r.fields);
    return shown;
}

static void test_csv_fields_are_split_and_unquoted(void) {
    EXPECT_STRING(csv_shown("a,b\n1,2\n", ','), "a|b;1|2");
    EXPECT_STRING(csv_shown("a,b\r\n1,2\r\n3,4", ','), "a|b;1|2;3|4");
    EXPECT_STRING(csv_shown("a,b\r1,2\r", ','), "a|b;1|2");
    EXPECT_STRING(csv_shown("\xef\xbb\xbf"
                            "a,b\n1,2",
                      ','),
        "a|b;1|2");
    EXPECT_STRING(csv_shown("\xef\xbb\xbf\"a\",b\n1,2", ','), "a|b;1|2");
    EXPECT_STRING(csv_shown("a,b\n\"x, y\",\"say \"\"hi\"\"\"\n", ','), "a|b;x, y|say \"hi\"");
    EXPECT_STRING(csv_shown("a,b\n\"two\r\nlines\",\"\"\n3,4", ','), "a|b;two\r\nlines|;3|4");
    EXPECT_STRING(csv_shown("a,b\n\"x\" tail,y\n", ','), "a|b;\"x\" tail|y");
    EXPECT_STRING(csv_shown("a,b\n5\" disk,y\n", ','), "a|b;5\" disk|y");
    EXPECT_STRING(csv_shown("a,b\n\"never closed,y\n3,4\n", ','), "a|b;\"never closed|y;3|4");
    EXPECT_STRING(csv_shown("a,b\n1,\"", ','), "a|b;1|\"");
    EXPECT_STRING(csv_shown("a,b\n\n\r\n1\n1,2,3,\n,", ','), "a|b;1;1|2|3|;|");
    EXPECT_STRING(csv_shown("a;b\n1,5;2", ';'), "a|b;1,5|2");
}

static void test_csv_separator_is_found_from_the_header(void) {
    const char *const names[2] = {"filepath", "title"};
    const struct {
        const char *header;
        char separator;
    } cases[] = {{"filepath\ttitle\n", '\t'}, {"filepath,title", ','}, {"id;title;filepath\r\n", ';'},
        {"filepath|title\n", '|'}, {"\"filepath\",\"title\",\"a;b;c;d;e\"\n", ','},
        {"filepath\ttitle\ta,b,c,d,e\n", '\t'}, {"\"a\nb\tc\td\te\",title,filepath\n", ','},
        {" filepath ; title \n", ';'}, {"x;y;z\n1,2,3,4,5", ';'}, {"filepath;a,b,c,d\n", ';'},
        {"title\ta,b,c,d\n", '\t'}}; // one of the names is enough
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        EXPECT(csv_find_separator(cases[i].header, strlen(cases[i].header), names, 2) == cases[i].separator,
            "%s", cases[i].header);
}

static void test_csv_rows_become_samples(void) {
    uint8_t png[4096];
    char text[4096];
    size_t bytes = make_png(png, sizeof png, 1, 5, 4);
    make_directories(at("csv/images"));
    write_file(at("csv/images/a b.png"), png, bytes);
    write_file(at("here.png"), png, bytes); // no CSV is next to it: found from the working directory
    make_directories(at("csv/folder.png"));
    mkfifo(at("csv/pipe.png"), 0600);
    snprintf(text, sizeof text,
        "filepath,title,label\nimages/a b.png,NA,3\nimages/a b.png,null,dog\n%s,  spaced ,cat\nhere.png,\"a, "
        "\"\"b\"\"\nc\",0\n"
        "gone.png,x,1\nimages/a b.png/x,x,1\nfolder.png,x,1\npipe.png,x,1\nimages/a b.png, ,1\nimages/a "
        "b.png\n,nothing,1\nimages/a b.png,x,99",
        at("here.png"));
    write_text(at("csv/t.csv"), text);
    if (chdir(folder)) die(EXIT_RUNTIME, "%s", folder);
    const char *const classnames[4] = {"cat", "dog", "bird", "fish"};
    DatasetConfig c = dataset_config_default();
    c.classnames = classnames;
    c.classname_count = 4;
    Dataset d = dataset_open(at("csv/t.csv"), &c, 2);
    SampleBuffers b = {0};
    EXPECT(dataset_count(&d) == 11, "%d", (int)dataset_count(&d)); // the row without a title is passed over
    const char *const captions[4] = {"NA", "null", "  spaced ", "a, \"b\"\nc"};
    const int labels[4] = {3, 1, 0, 0};
    for (int i = 0; i < 4; i++) {
        EXPECT_CAPTION(&d, i, &b, captions[i]);
        EXPECT(b.label == labels[i] && b.image.bytes == bytes && !memcmp(b.image.data, png, bytes));
    }
    const SampleStatus wanted[6] = {SAMPLE_MISSING, SAMPLE_MISSING, SAMPLE_UNREADABLE, SAMPLE_UNREADABLE,
        SAMPLE_EMPTY_CAPTION, SAMPLE_NO_IMAGE};
    for (int i = 0; i < 6; i++) EXPECT_STATUS(&d, i + 4, &b, wanted[i]);
    dataset_free(&d);

    c.need_caption = false;
    c.need_label = true; // zero-shot: captions do not matter, labels do
    d = dataset_open(at("csv/t.csv"), &c, 2);
    EXPECT_STATUS(&d, 8, &b, SAMPLE_OK);
    EXPECT_STATUS(&d, 10, &b, SAMPLE_NO_LABEL); // no class has this number
    char origin[256];
    dataset_origin(&d, 4, origin, sizeof origin);
    EXPECT(ends_with(origin, "csv/t.csv:gone.png"), "%s", origin);
    dataset_free(&d);
    c.num_samples = 3;
    d = dataset_open("csv/t.csv", &c, 2); // a relative path
    EXPECT(dataset_count(&d) == 3 && d.files[0].samples == 3);
    EXPECT_STATUS(&d, 0, &b, SAMPLE_OK);
    dataset_free(&d);
    sample_buffers_free(&b);
}

static void test_csv_that_cannot_be_used_ends_in_one_line(void) {
    OpenCase c = open_of(at("e.csv"));
    write_text(c.spec, "path\tcaption\tlang\na\tb\tc\n");
    EXPECT_REFUSED(
        open_case, &c, "no column 'filepath' (there are: path, caption, lang); name it with --csv-img-key");
    c.config.csv_img_key = "path";
    EXPECT_REFUSED(open_case, &c, "--csv-caption-key");
    c.config.csv_caption_key = "caption";
    c.config.need_label = true;
    EXPECT_REFUSED(open_case, &c, "--csv-label-key");
    c = open_of(at("e.csv"));
    write_text(c.spec, "filepath,title\n");
    EXPECT_REFUSED(open_case, &c, "is empty");
    write_text(c.spec, "filepath,title\na.png,b\n");
    c.least = 2;
    EXPECT_REFUSED(open_case, &c, "at least 2 are needed");
    write_text(c.spec, "");
    EXPECT_REFUSED(open_case, &c, "is empty");
    write_file(c.spec,
        "\xff\xfe"
        "f\0i\0l\0e\0",
        10);
    EXPECT_REFUSED(open_case, &c, "UTF-8");
    c = open_of(at("not there.csv"));
    EXPECT_REFUSED(open_case, &c, "no such file");
    c = open_of("a.csv::b.csv");
    EXPECT_REFUSED(open_case, &c, "a.csv: no such file or folder");
}

// Tables of random pieces: any row count, no read outside (the sanitizers look after that).
static void test_csv_of_random_pieces_is_survived(void) {
    static const char *const pieces[] = {"\"", "\"\"", ",", "\n", "\r", "\r\n", "x", "\"a\nb\"", "\t", "\xff",
        "filepath,title", ";", "\"\"\""};
    char text[512];
    int rows = 0;
    for (int round = 0; round < 2000; round++) {
        Rand r = rand_for(1, (uint64_t)round, 0);
        size_t n = (size_t)snprintf(text, sizeof text, "%s", round % 2 ? "filepath,title\n" : "");
        for (uint64_t k = rand_below(&r, 40); k > 0; k--)
            n += (size_t)snprintf(
                text + n, sizeof text - n, "%s", pieces[rand_below(&r, sizeof pieces / sizeof *pieces)]);
        CsvReader reader;
        memset(&reader, 0, sizeof reader);
        reader.text = (char *)malloc_check(n + 1);
        reader.length = n;
        memcpy(reader.text, text, n + 1);
        const char *const names[2] = {"filepath", "title"};
        reader.separator = csv_find_separator(reader.text, n, names, 2);
        while (csv_read_row(&reader))
            for (int i = 0; i < reader.count; i++)
                rows += strlen(reader.fields[i].start) == reader.fields[i].length;
        EXPECT(reader.at == n);
        free(reader.text);
        free(reader.fields);
    }
    EXPECT(rows > 2000);
}

// ---------------------------------------------------------------- braces

static void expand_case(const void *spec) {
    StringList s = shard_list((const char *)spec);
    string_list_free(&s);
}

static void test_braces_expand_or_are_refused(void) {
    const char *const cases[][2] = {{"a.tar", "a.tar"}, {"a-{0..2}.tar", "a-0.tar a-1.tar a-2.tar"},
        {"a-{08..11}.tar", "a-08.tar a-09.tar a-10.tar a-11.tar"}, {"{8..010}", "008 009 010"},
        {"{7..7}x", "7x"}, {"{0..1}{a,b}", "0a 0b 1a 1b"}, {"{a,b{1..2},}.tar", "a.tar b1.tar b2.tar .tar"},
        {"{train,{a,b}/val}-{00..01}", "train-00 train-01 a/val-00 a/val-01 b/val-00 b/val-01"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        StringList s = shard_list(cases[i][0]);
        char joined[512] = "";
        for (size_t k = 0; k < s.count; k++)
            snprintf(
                joined + strlen(joined), sizeof joined - strlen(joined), "%s%s", k ? " " : "", s.list[k]);
        EXPECT_STRING(joined, cases[i][1]);
        string_list_free(&s);
    }
    EXPECT_REFUSED(expand_case, "a{9..1}.tar", "runs backwards");
    EXPECT_REFUSED(expand_case, "a{a..}.tar", "not a range of numbers");
    EXPECT_REFUSED(expand_case, "a{..3}.tar", "not a range of numbers");
    EXPECT_REFUSED(expand_case, "a{1..2..3}.tar", "not a range of numbers");
    EXPECT_REFUSED(expand_case, "a{-1..2}.tar", "not a range of numbers");
    EXPECT_REFUSED(expand_case, "a{}.tar", "neither a range nor a list");
    EXPECT_REFUSED(expand_case, "a{7}.tar", "neither a range nor a list");
    EXPECT_REFUSED(expand_case, "a{1..2.tar", "{ without }");
    EXPECT_REFUSED(expand_case, "a1..2}.tar", "} without {");
    EXPECT_REFUSED(expand_case, "a{0..999999999}.tar", "more than 1000000");
    EXPECT_REFUSED(expand_case, "a{0..99999999999999999999}.tar", "not a range of numbers");
    EXPECT_REFUSED(expand_case, "{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar", "more than 1000000");
    EXPECT_REFUSED(expand_case, "{{{{{{{{{{{{1,2}}}}}}}}}}}}", "neither");
    EXPECT_REFUSED(expand_case, "{1,}{1,}{1,}{1,}{1,}{1,}{1,}{1,}{1,}", "pairs of braces");
    EXPECT(is_shard_name("x/a.tar") && is_shard_name("a.TGZ") && is_shard_name("a.tar.gz") &&
           is_shard_name("{a.tar,b.tar}"));
    EXPECT(!is_shard_name("a.targets.csv") && !is_shard_name("tar") && !is_shard_name("a.csv"));
}

int main(void) {
    make_test_folder("test_csv");
    RUN(test_csv_fields_are_split_and_unquoted);
    RUN(test_csv_separator_is_found_from_the_header);
    RUN(test_csv_rows_become_samples);
    RUN(test_csv_that_cannot_be_used_ends_in_one_line);
    RUN(test_csv_of_random_pieces_is_survived);
    RUN(test_braces_expand_or_are_refused);
    remove_test_folder();
    return test_report();
}
