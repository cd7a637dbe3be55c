// The caption files of COCO and Flickr: Karpathy's split, COCO's annotations, token files and tables, with
// the images in the places where people have them.
#include "clipc/data/groups.h"

#include "dev/test/child.h"
#include "dev/test/data_files.h"

// ---------------------------------------------------------------- helpers

// Writes small images to FOLDER/0.png … FOLDER/(count-1).png, below the test folder.
static void make_images(const char *in, int count) {
    static uint8_t png[4096];
    char name[256];
    make_directories(at(in));
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%s/%d.png", in, i);
        write_file(at(name), png, make_png(png, sizeof png, 40 * i + 1, 8, 8));
    }
}

static void remove_images(const char *in) {
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", at(in));
    if (system(command)) warn("%s: cannot remove it", in);
}

// How a file below the test folder is opened to validate on it.
static OpenCase validation_of(const char *name) {
    static char path[PATH_SIZE]; // one at a time
    path_format(path, "%s", at(name));
    OpenCase c = open_of(path);
    c.config.validation = true;
    return c;
}

// Opens the file and compares "IMAGE CAPTION|…", IMAGE by its number among the data set's images; every image
// can be read.
static void expect_samples(const OpenCase *c, const char *expected) {
    char got[2048] = "";
    size_t n = 0;
    SampleBuffers b = {0};
    Dataset d = dataset_open(c->spec, &c->config, c->least);
    ImageGroups g = image_groups(&d);
    for (int64_t i = 0; i < d.count; i++) {
        const SampleStatus status = dataset_read(&d, i, &b);
        EXPECT(status == SAMPLE_OK && b.image.bytes > 8, "%s: sample %d: %s", c->spec, (int)i,
            sample_status_name(status));
        n += (size_t)snprintf(
            got + n, sizeof got - n, "%d %.*s|", g.image_of[i], (int)b.caption_bytes, b.caption);
    }
    EXPECT_STRING(got, expected);
    EXPECT(d.files[0].samples == d.count, "%s", c->spec);
    image_groups_free(&g);
    sample_buffers_free(&b);
    dataset_free(&d);
}

// ---------------------------------------------------------------- the forms

#define SENTENCE(text) "{\"tokens\": [\"x\"], \"raw\": \"" text "\", \"sentid\": 1}"

static void test_karpathys_split(void) {
    OpenCase test = validation_of("karpathy/dataset_coco.json"), train = open_of(test.spec);
    make_images("karpathy/val2014", 4);
    write_text(test.spec,
        "{\"images\": ["
        "{\"filepath\": \"val2014\", \"filename\": \"0.png\", \"split\": \"test\", \"sentences\": [" SENTENCE(
            "a") ", " SENTENCE("b \\u00e9") "]},"
                                            "{\"filepath\": \"val2014\", \"filename\": \"1.png\", \"split\": "
                                            "\"train\", \"sentences\": [" SENTENCE(
                                                "c") "]},"
                                                     "{\"filepath\": \"val2014\", \"filename\": \"2.png\", "
                                                     "\"split\": \"test\", \"sentences\": [{\"raw\": "
                                                     "5}, " SENTENCE(
                                                         "d") "]},"
                                                              "{\"filepath\": \"val2014\", \"filename\": "
                                                              "\"3.png\", \"split\": \"restval\", "
                                                              "\"sentences\": [" SENTENCE("e") ", " SENTENCE(
                                                                  "f") "]},"
                                                                       "{\"filename\": \"1.png\", \"split\": "
                                                                       "\"val\", \"sentences\": [" SENTENCE(
                                                                           "g") "]}"
                                                                                "], \"dataset\": \"coco\"}");
    expect_samples(&test, "0 a|0 b é|1 d|");
    expect_samples(&train, "0 c|1 e|1 f|");
    EXPECT(child_run(open_case, &test) == 0 &&
               strstr(child.text, "3 captions of the split test; 4 of other splits are passed over") &&
               strstr(child.text, "1 captions are passed over"),
        "%s", child.text);
    // Flickr30k: no filepath, the images in a folder of their own
    remove_images("karpathy/val2014");
    make_images("karpathy/flickr30k-images", 1);
    write_text(test.spec,
        "{\"images\": [{\"filename\": \"0.png\", \"split\": \"test\", \"sentences\": [" SENTENCE("a") "]}]}");
    expect_samples(&test, "0 a|");
    EXPECT_REFUSED(open_case, &train, "no captions of the split train in it");
}

static void test_coco_captions(void) {
    make_directories(at("coco/annotations"));
    make_images("coco/val2017", 3);
    OpenCase c = validation_of("coco/annotations/captions_val2017.json");
    write_text(c.spec, "\n{\"info\": {\"year\": 2017}, \"licenses\": [],"
                       "\"images\": [{\"file_name\": \"2.png\", \"id\": 700}, {\"file_name\": \"0.png\", "
                       "\"id\": 5}, {\"file_name\": \"1.png\", \"id\": 60}],"
                       "\"annotations\": [{\"image_id\": 5, \"id\": 1, \"caption\": \"a\"}, {\"image_id\": "
                       "700, \"id\": 2, \"caption\": \"b\"},"
                       "{\"image_id\": 5, \"id\": 3, \"caption\": \"c\"}, {\"image_id\": 8, \"id\": 4, "
                       "\"caption\": \"none\"}]}");
    expect_samples(&c, "0 b|1 a|1 c|");
    EXPECT(
        child_run(open_case, &c) == 0 && strstr(child.text, "1 captions are passed over"), "%s", child.text);
    c.config.num_samples = 2;
    expect_samples(&c, "0 b|1 a|");
    c.config.num_samples = 0;
    remove_images("coco/val2017");
    EXPECT_REFUSED(open_case, &c, "its images, such as 2.png, are not beside it");
    make_images("coco/images/val2017", 3);
    expect_samples(&c, "0 b|1 a|1 c|");
    remove_images("coco/images");
    make_images("coco/annotations", 3);
    expect_samples(&c, "0 b|1 a|1 c|");
}

static void test_files_of_flickr(void) {
    make_images("flickr/images", 2);
    OpenCase c = validation_of("flickr/results_20130124.token");
    write_text(c.spec, "0.png#0\tTwo, \"quoted\" .\r\n0.png#1\ta\tb\n9.png#0\tno file\n1.png#0\tc\n");
    EXPECT(child_run(open_case, &c) == 0 && !child.text[0], "%s", child.text);
    Dataset d = dataset_open(c.spec, &c.config, 1);
    SampleBuffers b = {0};
    EXPECT_CAPTION(&d, 0, &b, "Two, \"quoted\" .");
    EXPECT_CAPTION(&d, 1, &b, "a\tb");
    EXPECT_STATUS(&d, 2, &b, SAMPLE_MISSING);
    EXPECT_CAPTION(&d, 3, &b, "c");
    sample_buffers_free(&b);
    dataset_free(&d);
    c = validation_of("flickr/captions.txt");
    write_text(c.spec, "\xef\xbb\xbfimage,caption\n0.png,\"a, b\"\n1.png,c\n0.png,d\n");
    expect_samples(&c, "0 a, b|1 c|0 d|");
    write_text(c.spec, "image_name| comment_number| comment\n0.png| 0| a , b\n1.png| 0| c\n0.png| 1| d\n");
    expect_samples(&c, "0  a , b|1  c|0  d|");
    c.config.csv_img_key = "image_name"; // columns that were named
    c.config.csv_caption_key = "comment_number";
    EXPECT(child_run(open_case, &c) == 0, "%s", child.text);
    c = validation_of("flickr/captions.txt");
    c.config.type = DATASET_CSV;
    EXPECT_REFUSED(open_case, &c, "no column 'filepath'");
}

static void test_other_files_are_left_to_others(void) {
    make_images("other", 2);
    OpenCase c = validation_of("other/t.csv");
    write_text(c.spec, "filepath,title\n0.png,a#1\tb\n1.png,c\n");
    expect_samples(&c, "0 a#1\tb|1 c|");
    write_text(c.spec, "image,filepath,title\nx,0.png,a\ny,1.png,b\n");
    expect_samples(&c, "0 a|1 b|");
    static const char *const others[] = {"{\"images\": 5}", "{\"images\": []}",
        "{\"images\": [{}], \"annotations\": [{}]}", "{\"images\": [{\"id\": 1}]", "#1\ta\n"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        write_text(c.spec, others[i]);
        child_run(open_case, &c);
        EXPECT(child.code == EXIT_USAGE && !strstr(child.text, "captions of the split"), "%s: %d: %s",
            others[i], child.code, child.text);
    }
}

int main(void) {
    make_test_folder("test_caption_files");
    RUN(test_karpathys_split);
    RUN(test_coco_captions);
    RUN(test_files_of_flickr);
    RUN(test_other_files_are_left_to_others);
    remove_test_folder();
    return test_report();
}
