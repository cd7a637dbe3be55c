// clipc/model/architectures.h: the table of known models, and configurations in open_clip's JSON form, good
// and refused.
#include "clipc/model/architectures.h"
#include "dev/test/child.h"

#include <fcntl.h>

static char folder[] = "/tmp/test_models_XXXXXX";
static char json_path[PATH_SIZE];

static void write_json(const char *text) {
    FILE *f = fopen_check(json_path, "wb");
    fwrite_check(text, strlen(text), f, json_path);
    fclose(f);
}

static void load(const void *name) {
    ClipConfig c;
    model_load((const char *)name, &c);
}

static void test_the_known_models_are_those_of_open_clip(void) {
    ClipConfig c;
    char error[256];
    int rows = 0;
#define X(name_, ...)                                                                             \
    EXPECT(model_find(name_, &c) && config_check(&c, error), name_);                              \
    EXPECT_STRING(c.name, name_);                                                                 \
    EXPECT(c.context_length == 77 && c.vocab_size == 49408 && c.eot_id == 49407 &&                \
           c.text_mlp == 4 * c.text_width && c.text_width == 64 * c.text_heads);                  \
    EXPECT(c.ln_pre == 1 && c.quick_gelu == 0 && c.image_ln_eps == 1e-5f && c.resize_mode == 0 && \
           c.mean_b == 0.40821073f);                                                              \
    rows++;
    MODEL_CONFIGS(X)
#undef X
    EXPECT(rows == 24, "%d", rows);

    EXPECT(model_find("ViT-B-32", &c));
    TensorTable t = tensor_table_create(&c);
    EXPECT(t.count == 302 && t.parameters == 151277313, "%d tensors, %zu parameters", t.count, t.parameters);
    tensor_table_free(&t);
    EXPECT(model_find("ViT-B/32-quickgelu", &c) && c.quick_gelu == 1);
    EXPECT_STRING(c.name, "ViT-B-32-quickgelu");
    EXPECT(!model_find("ViT-B-32-quickgelux", &c) && !model_find("ViT-B-3", &c) && !model_find("", &c) &&
           !model_find("ViT-L-16-quickgelu", &c));
    const struct {
        const char *name;
        int heads, mlp;
    } wide[] = {{"ViT-H-14-378-quickgelu", 16, 5120}, {"ViT-g-14", 16, 6144}, {"ViT-bigG-14", 16, 8192},
        {"ViT-e-14", 16, 15360}};
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        EXPECT(model_find(wide[i].name, &c) && c.image_heads == wide[i].heads && c.image_mlp == wide[i].mlp,
            "%s: %d, %d", c.name, c.image_heads, c.image_mlp);
    EXPECT_REFUSED(load, "ViT-B-23", "did you mean ViT-B-32?");
    EXPECT_REFUSED(load, "ViT-L-14-quickgel", "did you mean ViT-L-14-quickgelu?");
    EXPECT_REFUSED(load, "/tmp", "folder");
}

#define IMAGE                                                                                      \
    "\"vision_cfg\": {\"image_size\": 21, \"patch_size\": 10, \"width\": 60, \"head_width\": 20, " \
    "\"layers\": 2, \"mlp_ratio\": 4.3637}"
#define TEXT \
    "\"text_cfg\": {\"context_length\": 9, \"vocab_size\": 257, \"width\": 32, \"heads\": 4, \"layers\": 3}"

static void test_a_json_file_describes_a_model(void) {
    ClipConfig c;
    write_json("{\"embed_dim\": 20, \"quick_gelu\": true, " IMAGE ", " TEXT "}");
    model_load(json_path, &c);
    EXPECT(c.embed_dim == 20 && c.quick_gelu == 1 && c.image_size == 21 && c.patch_size == 10);
    EXPECT(c.image_width == 60 && c.image_heads == 3 && c.image_layers == 2);
    EXPECT(c.image_mlp == 261 && c.text_mlp == 128, "%d %d", c.image_mlp, c.text_mlp); // rounded down
    EXPECT(c.context_length == 9 && c.vocab_size == 257 && c.eot_id == 256 && c.text_width == 32 &&
           c.text_heads == 4 && c.text_layers == 3);
    EXPECT(c.ln_pre == 1);
    EXPECT_STRING(c.name, "some.model");

    write_json("{\"model_cfg\": {\"embed_dim\": 5, \"vision_cfg\": {\"no_ln_pre\": true}, \"text_cfg\": "
               "{\"norm_kwargs\": {\"eps\": 1e-6}}},"
               " \"preprocess_cfg\": {\"mean\": [0.5, 0.25, 0], \"std\": [1, 2, 3.5], \"interpolation\": "
               "\"bilinear\", \"resize_mode\": \"longest\","
               " \"size\": [224, 224], \"mode\": \"RGB\", \"fill_color\": 0}}");
    model_load(json_path, &c);
    EXPECT(
        c.embed_dim == 5 && c.ln_pre == 0 && c.quick_gelu == 0 && c.image_size == 224 && c.patch_size == 16);
    EXPECT(c.image_width == 768 && c.image_heads == 12 && c.image_layers == 12);
    EXPECT(c.text_width == 512 && c.text_heads == 8 && c.text_layers == 12 && c.context_length == 77 &&
           c.vocab_size == 49408);
    EXPECT(c.image_ln_eps == 1e-5f && c.text_ln_eps == 1e-6f && c.interpolation == 1 && c.resize_mode == 2);
    EXPECT(c.mean_r == 0.5f && c.mean_g == 0.25f && c.mean_b == 0 && c.std_r == 1 && c.std_g == 2 &&
           c.std_b == 3.5f);
}

static void test_a_json_file_of_another_kind_of_model_is_refused(void) {
    // section, key, value, what the message says (NULL: none, it is harmless)
    const char *cases[][4] = {
        {"vision_cfg", "timm_model_name", "\"vit_base\"", "timm_model_name"},
        {"vision_cfg", "layers", "[3, 4, 6, 3]", "ResNet"},
        {"vision_cfg", "attentional_pool", "true", "attentional_pool"},
        {"vision_cfg", "no_ln_pre", "1", "no_ln_pre"},
        {"vision_cfg", "pool_type", "\"avg\"", "pool_type"},
        {"vision_cfg", "ls_init_value", "1e-4", "ls_init_value"},
        {"vision_cfg", "image_size", "[10, 12]", "image_size"},
        {"vision_cfg", "width", "\"12\"", "width"},
        {"vision_cfg", "width", "12.0", "width"},
        {"vision_cfg", "width", "99999999999", "width"},
        {"vision_cfg", "width", "-4", "width"},
        {"vision_cfg", "head_width", "0", "image_heads"},
        {"vision_cfg", "mlp_ratio", "-1", "mlp_ratio"},
        {"vision_cfg", "norm_kwargs", "{\"eps\": 1, \"other\": 1}", "norm_kwargs"},
        {"vision_cfg", "norm_kwargs", "{\"eps\": 1}", "image_ln_eps"},
        {"vision_cfg", "surprise", "0", "surprise is not a known key"},
        {"text_cfg", "hf_model_name", "\"roberta-base\"", "hf_model_name"},
        {"text_cfg", "hf_tokenizer_name", "\"bert\"", "hf_tokenizer_name"},
        {"text_cfg", "pool_type", "\"eos\"", "pool_type"},
        {"text_cfg", "no_causal_mask", "true", "no_causal_mask"},
        {"text_cfg", "proj_bias", "true", "proj_bias"},
        {"text_cfg", "heads", "3", "text_heads"},
        {"vision_cfg", "patch_dropout", "0.5", NULL},
        {"vision_cfg", "attentional_pool", "false", NULL},
        {"vision_cfg", "image_size", "[32, 32]", NULL},
        {"vision_cfg", "pool_type", "\"tok\"", NULL},
        {"text_cfg", "hf_model_name", "null", NULL},
        {"text_cfg", "layers", "null", NULL},
    };
    char text[1024];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *other = strcmp(cases[i][0], "vision_cfg") ? "vision_cfg" : "text_cfg";
        snprintf(text, sizeof text, "{\"embed_dim\": 8, \"%s\": {\"%s\": %s}, \"%s\": {}}", cases[i][0],
            cases[i][1], cases[i][2], other);
        write_json(text);
        if (cases[i][3]) EXPECT_REFUSED(load, json_path, cases[i][3]);
        else EXPECT(child_run(load, json_path) == 0, "%s: %s", text, child.text);
    }
    const char *whole[][2] = {
        {"", "not valid JSON"},
        {"[1, 2]", "no object"},
        {"{\"embed_dim\": 8, ", "not valid JSON (line 1"},
        {"{\"embed_dim\": 8, \"embed_dim\": 9}", "not valid JSON"},
        {"{\"embed_dim\": 8, " IMAGE "}", "text_cfg"},
        {"{" IMAGE ", " TEXT "}", "embed_dim is missing"},
        {"{\"embed_dim\": 8, \"init_logit_bias\": -10, " IMAGE ", " TEXT "}", "init_logit_bias"},
        {"{\"embed_dim\": 8, \"quick_gelu\": 1, " IMAGE ", " TEXT "}", "quick_gelu"},
        {"{\"embed_dim\": 8, \"vision_cfg\": [], " TEXT "}", "vision_cfg"},
        {"{\"model_cfg\": 3}", "open_clip's form"},
        {"{\"model_cfg\": {\"embed_dim\": 8, " IMAGE ", " TEXT "}, \"preprocess_cfg\": {\"mean\": [1, 2]}}",
            "mean must be three numbers"},
        {"{\"model_cfg\": {\"embed_dim\": 8, " IMAGE ", " TEXT "}, \"preprocess_cfg\": {\"std\": [1, 2, 0]}}",
            "std_b"},
        {"{\"model_cfg\": {\"embed_dim\": 8, " IMAGE ", " TEXT
         "}, \"preprocess_cfg\": {\"interpolation\": \"random\"}}",
            "bicubic|bilinear"},
        {"{\"model_cfg\": {\"embed_dim\": 8, " IMAGE ", " TEXT "}, \"preprocess_cfg\": {\"resize_mode\": 1}}",
            "resize_mode"},
        {"{\"model_cfg\": {\"embed_dim\": 8, " IMAGE ", " TEXT
         "}, \"preprocess_cfg\": {\"fill_color\": 255}}",
            "fill_color"},
        {"{\"model_cfg\": {\"embed_dim\": 8, " IMAGE ", " TEXT "}, \"preprocess_cfg\": [3]}",
            "preprocess_cfg"},
    };
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        write_json(whole[i][0]);
        EXPECT_REFUSED(load, json_path, whole[i][1]);
    }

    FILE *f = fopen_check(json_path, "wb"); // nested deeper than any stack
    for (int i = 0; i < 100000; i++) fputc('[', f);
    fclose(f);
    EXPECT_REFUSED(load, json_path, "not valid JSON");
}

// data/schema.json is what --schema prints: dev/*.py read the tables of the C headers from there.
static void test_the_schema_file_is_what_the_headers_say(void) {
    char *printed = NULL;
    size_t length, stored_length;
    FILE *f = open_memstream(&printed, &length);
    EXPECT(f && schema_print(f) == 0);
    fclose(f);
    char *stored = file_read_all("data/schema.json", &stored_length);
    size_t at = 0, line = 1, line_start = 0;
    for (; at < length && at < stored_length && printed[at] == stored[at]; at++)
        if (printed[at] == '\n') {
            line++;
            line_start = at + 1;
        }
    EXPECT(at == length && at == stored_length,
        "data/schema.json, line %zu: should be '%.*s'; run make schema", line,
        (int)strcspn(printed + line_start, "\n"), printed + line_start);

    json_error_t error;
    json_t *schema = json_loadb(printed, length, JSON_REJECT_DUPLICATES, &error);
    EXPECT(schema, "--schema is not JSON: line %d: %s", error.line, error.text);
    EXPECT(json_array_size(json_object_get(schema, "models")) == 24);
    json_decref(schema);
    free(stored);
    free(printed);
}

int main(void) {
    if (!mkdtemp(folder)) die(EXIT_RUNTIME, "%s: cannot make the folder", folder);
    path_format(json_path, "%s/some.model.json", folder);
    RUN(test_the_known_models_are_those_of_open_clip);
    RUN(test_the_schema_file_is_what_the_headers_say);
    RUN(test_a_json_file_describes_a_model);
    RUN(test_a_json_file_of_another_kind_of_model_is_refused);
    unlink(json_path);
    rmdir(folder);
    return test_report();
}
