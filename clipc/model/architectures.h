// Which models there are: open_clip's configurations with a plain ViT and a causal text transformer by name,
// any other one from a JSON file. At the end: `train_clip --schema`, the tables of this file, of weights.h
// and of pretrained_tags.h as JSON for dev/convert.py.
#ifndef CLIPC_ARCHITECTURES_H
#define CLIPC_ARCHITECTURES_H

#include "clipc/base/safe_file.h"  // SEAL_BLOCK
#include "clipc/data/vocabulary.h" // vocabulary_schema
#include "clipc/model/weights.h"   // ClipConfig, config_check
#include "data/pretrained_tags.h"  // PRETRAINED_TAGS

#include <jansson.h>

// name, embed_dim, image_size, patch_size; image tower: width, layers, width of a head, MLP ratio; text
// tower: width, heads, layers; 1 where open_clip also has the name with the suffix -quickgelu. All of them:
// context 77, vocabulary 49408, MLP ratio of the text tower 4.
// clang-format off
#define MODEL_CONFIGS(X)                                                          \
    X("ViT-S-32",          384,  224, 32, 384,  12, 64,  4,      384,  6,  12, 0) \
    X("ViT-S-16",          384,  224, 16, 384,  12, 64,  4,      384,  6,  12, 0) \
    X("ViT-S-32-alt",      256,  224, 32, 384,  12, 64,  4,      256,  4,  10, 0) \
    X("ViT-S-16-alt",      256,  224, 16, 384,  12, 64,  4,      256,  4,  10, 0) \
    X("ViT-M-32",          512,  224, 32, 512,  12, 64,  4,      512,  8,  12, 0) \
    X("ViT-M-16",          512,  224, 16, 512,  12, 64,  4,      512,  8,  12, 0) \
    X("ViT-M-32-alt",      384,  224, 32, 512,  12, 64,  4,      384,  6,  12, 0) \
    X("ViT-B-32",          512,  224, 32, 768,  12, 64,  4,      512,  8,  12, 1) \
    X("ViT-B-32-256",      512,  256, 32, 768,  12, 64,  4,      512,  8,  12, 0) \
    X("ViT-B-16",          512,  224, 16, 768,  12, 64,  4,      512,  8,  12, 1) \
    X("ViT-B-32-plus-256", 640,  256, 32, 896,  12, 64,  4,      640,  10, 12, 0) \
    X("ViT-B-16-plus",     640,  224, 16, 896,  12, 64,  4,      640,  10, 12, 0) \
    X("ViT-B-16-plus-240", 640,  240, 16, 896,  12, 64,  4,      640,  10, 12, 0) \
    X("ViT-L-14",          768,  224, 14, 1024, 24, 64,  4,      768,  12, 12, 1) \
    X("ViT-L-14-280",      768,  280, 14, 1024, 24, 64,  4,      768,  12, 12, 0) \
    X("ViT-L-14-336",      768,  336, 14, 1024, 24, 64,  4,      768,  12, 12, 1) \
    X("ViT-L-16",          768,  224, 16, 1024, 24, 64,  4,      768,  12, 12, 0) \
    X("ViT-L-16-320",      768,  320, 16, 1024, 24, 64,  4,      768,  12, 12, 0) \
    X("ViT-H-14",          1024, 224, 14, 1280, 32, 80,  4,      1024, 16, 24, 1) \
    X("ViT-H-14-378",      1024, 378, 14, 1280, 32, 80,  4,      1024, 16, 24, 1) \
    X("ViT-H-16",          1024, 224, 16, 1280, 32, 80,  4,      1024, 16, 24, 0) \
    X("ViT-g-14",          1024, 224, 14, 1408, 40, 88,  4.3637, 1024, 16, 24, 0) \
    X("ViT-bigG-14",       1280, 224, 14, 1664, 48, 104, 4.9231, 1280, 20, 32, 1) \
    X("ViT-e-14",          1280, 224, 14, 1792, 56, 112, 8.5715, 1280, 20, 36, 0)
// clang-format on

// Section of the JSON file ("" is the top), key, what it may hold. "read": used here. "any": has no effect on
// what the model computes (it concerns training, or a tower that another key names). "off": must be null,
// false, 0 or empty; anything else would be another kind of model. "=x": must be x or null. Any other key is
// refused, as open_clip does.
// clang-format off
#define CONFIG_KEYS(X)                              \
    X("", "embed_dim", "read")                      \
    X("", "quick_gelu", "read")                     \
    X("", "vision_cfg", "read")                     \
    X("", "text_cfg", "read")                       \
    X("", "custom_text", "any")                     \
    X("", "init_logit_scale", "any")                \
    X("", "nonscalar_logit_scale", "any")           \
    X("", "output_dict", "any")                     \
    X("", "cast_dtype", "any")                      \
    X("", "init_logit_bias", "off")                 \
    X("", "multimodal_cfg", "off")                  \
    X("vision_cfg", "image_size", "read")           \
    X("vision_cfg", "patch_size", "read")           \
    X("vision_cfg", "width", "read")                \
    X("vision_cfg", "layers", "read")               \
    X("vision_cfg", "head_width", "read")           \
    X("vision_cfg", "mlp_ratio", "read")            \
    X("vision_cfg", "norm_kwargs", "read")          \
    X("vision_cfg", "patch_dropout", "any")         \
    X("vision_cfg", "output_tokens", "any")         \
    X("vision_cfg", "image_seq_len", "any")         \
    X("vision_cfg", "final_ln_after_pool", "any")   \
    X("vision_cfg", "attn_pooler_queries", "any")   \
    X("vision_cfg", "attn_pooler_heads", "any")     \
    X("vision_cfg", "timm_model_pretrained", "any") \
    X("vision_cfg", "timm_pool", "any")             \
    X("vision_cfg", "timm_proj", "any")             \
    X("vision_cfg", "timm_proj_bias", "any")        \
    X("vision_cfg", "timm_drop", "any")             \
    X("vision_cfg", "timm_drop_path", "any")        \
    X("vision_cfg", "timm_model_kwargs", "any")     \
    X("vision_cfg", "timm_model_name", "off")       \
    X("vision_cfg", "attentional_pool", "off")      \
    X("vision_cfg", "no_ln_pre", "read")            \
    X("vision_cfg", "ls_init_value", "off")         \
    X("vision_cfg", "act_kwargs", "off")            \
    X("vision_cfg", "qk_norm", "off")               \
    X("vision_cfg", "scaled_cosine_attn", "off")    \
    X("vision_cfg", "scale_heads", "off")           \
    X("vision_cfg", "scale_attn_inner", "off")      \
    X("vision_cfg", "scale_attn", "off")            \
    X("vision_cfg", "scale_fc", "off")              \
    X("vision_cfg", "pos_embed_type", "=learnable") \
    X("vision_cfg", "pool_type", "=tok")            \
    X("vision_cfg", "block_type", "=default")       \
    X("text_cfg", "context_length", "read")         \
    X("text_cfg", "vocab_size", "read")             \
    X("text_cfg", "width", "read")                  \
    X("text_cfg", "heads", "read")                  \
    X("text_cfg", "layers", "read")                 \
    X("text_cfg", "mlp_ratio", "read")              \
    X("text_cfg", "norm_kwargs", "read")            \
    X("text_cfg", "pad_id", "any")                  \
    X("text_cfg", "bos_id", "any")                  \
    X("text_cfg", "eos_id", "any")                  \
    X("text_cfg", "output_tokens", "any")           \
    X("text_cfg", "final_ln_after_pool", "any")     \
    X("text_cfg", "tiktoken_name", "any")           \
    X("text_cfg", "hf_model_pretrained", "any")     \
    X("text_cfg", "hf_proj_type", "any")            \
    X("text_cfg", "hf_pooler_type", "any")          \
    X("text_cfg", "hf_model_config", "any")         \
    X("text_cfg", "hf_model_name", "off")           \
    X("text_cfg", "hf_tokenizer_name", "off")       \
    X("text_cfg", "tokenizer_mode", "off")          \
    X("text_cfg", "tokenizer_kwargs", "off")        \
    X("text_cfg", "tokenizer_type", "off")          \
    X("text_cfg", "variable_text", "off")           \
    X("text_cfg", "embed_cls", "off")               \
    X("text_cfg", "no_causal_mask", "off")          \
    X("text_cfg", "ls_init_value", "off")           \
    X("text_cfg", "act_kwargs", "off")              \
    X("text_cfg", "proj_bias", "off")               \
    X("text_cfg", "qk_norm", "off")                 \
    X("text_cfg", "scaled_cosine_attn", "off")      \
    X("text_cfg", "scale_heads", "off")             \
    X("text_cfg", "scale_attn_inner", "off")        \
    X("text_cfg", "scale_attn", "off")              \
    X("text_cfg", "scale_fc", "off")                \
    X("text_cfg", "text_arch", "=clip")             \
    X("text_cfg", "pool_type", "=argmax")           \
    X("text_cfg", "proj_type", "=linear")           \
    X("text_cfg", "block_type", "=default")
// clang-format on

// ---------------------------------------------------------------- by name

#define QUICKGELU_SUFFIX "-quickgelu"

// open_clip's defaults, and the image statistics of OpenAI's data.
static inline void model_defaults(ClipConfig *c) {
    memset(c, 0, sizeof *c);
    c->ln_pre = 1;
    c->image_ln_eps = c->text_ln_eps = 1e-5f;
    c->mean_r = 0.48145466f;
    c->mean_g = 0.4578275f;
    c->mean_b = 0.40821073f;
    c->std_r = 0.26862954f;
    c->std_g = 0.26130258f;
    c->std_b = 0.27577711f;
    c->context_length = 77;
    c->vocab_size = CLIP_VOCABULARY;
}

// Sets the fields that follow from others: heads and MLP widths as open_clip counts them (rounded down), and
// the end-of-text id.
static inline void model_derive(
    ClipConfig *c, double head_width, double image_mlp_ratio, double text_mlp_ratio) {
    c->image_heads = head_width >= 1 ? (int)(c->image_width / head_width) : 0; // 0 is refused by config_check
    c->image_mlp = (int)(c->image_width * image_mlp_ratio);
    c->text_mlp = (int)(c->text_width * text_mlp_ratio);
    c->eot_id = c->vocab_size - 1;
}

// True when `name` is `known` followed by `suffix`; a slash in `name` counts as a dash ("ViT-B/32").
static inline bool model_name_is(const char *name, const char *known, const char *suffix) {
    size_t n = strlen(known), i = 0;
    while (i < n && (name[i] == known[i] || (name[i] == '/' && known[i] == '-'))) i++;
    return i == n && strcmp(name + n, suffix) == 0;
}

// Fills `out` for a name of MODEL_CONFIGS, with or without -quickgelu; false when the table has no such name
// (`out` is then undefined).
static inline bool model_find(const char *name, ClipConfig *out) {
    model_defaults(out);
#define X(known, embed, image, patch, width, layers, head_width, ratio, text_width_, text_heads_,       \
    text_layers_, suffixed)                                                                             \
    if (model_name_is(name, known, "") || (suffixed && model_name_is(name, known, QUICKGELU_SUFFIX))) { \
        out->embed_dim = embed;                                                                         \
        out->image_size = image;                                                                        \
        out->patch_size = patch;                                                                        \
        out->image_width = width;                                                                       \
        out->image_layers = layers;                                                                     \
        out->text_width = text_width_;                                                                  \
        out->text_heads = text_heads_;                                                                  \
        out->text_layers = text_layers_;                                                                \
        out->quick_gelu = !model_name_is(name, known, "");                                              \
        model_derive(out, head_width, ratio, 4);                                                        \
        snprintf(out->name, sizeof out->name, "%s%s", known, out->quick_gelu ? QUICKGELU_SUFFIX : "");  \
        return true;                                                                                    \
    }
    MODEL_CONFIGS(X)
#undef X
    return false;
}

// The known name that was probably meant: one that begins with `name`, or the closest by edit distance. False
// where none is near. Case does not count.
static inline bool model_nearest(const char *name, char nearest[NAME_BYTES]) {
    int best = 1 << 30;
    char candidate[NAME_BYTES], lower[NAME_BYTES], given[NAME_BYTES];
    const size_t length = strlen(name);
    lower_case(given, sizeof given, name);
#define X(known, embed, image, patch, width, layers, head_width, ratio, text_width, text_heads, text_layers, \
    suffixed)                                                                                                \
    for (int quick = 0; quick <= suffixed; quick++) {                                                        \
        snprintf(candidate, sizeof candidate, "%s%s", known, quick ? QUICKGELU_SUFFIX : "");                 \
        lower_case(lower, sizeof lower, candidate);                                                          \
        const bool begins = length > 4 && strncmp(lower, given, length) == 0;                                \
        const int distance = begins ? 0 : edit_distance(given, lower);                                       \
        if (distance < best) {                                                                               \
            best = distance;                                                                                 \
            memcpy(nearest, candidate, sizeof candidate);                                                    \
        }                                                                                                    \
    }
    MODEL_CONFIGS(X)
#undef X
    return is_near(best, length);
}

// Writes why `name` is not a model, and what to do.
static inline void model_fault(const char *name, char text[1024]) {
    char nearest[NAME_BYTES];
    const bool near = model_nearest(name, nearest);
    snprintf(text, 1024,
        "--model %.200s: no such model, and no such file%s%s%s (dev/convert.py --list shows all)", name,
        near ? "; did you mean " : "", near ? nearest : "", near ? "?" : "");
}

// ---------------------------------------------------------------- from a JSON file

// An object of the configuration file; path and section are for messages.
typedef struct {
    const char *path, *section; // section: "", "vision_cfg", "text_cfg", "preprocess_cfg"
    json_t *object;
} JsonPart;

static inline bool json_is_off(const json_t *v) {
    return !v || json_is_null(v) || json_is_false(v) || (json_is_number(v) && json_number_value(v) == 0) ||
           (json_is_string(v) && !*json_string_value(v)) || (json_is_object(v) && json_object_size(v) == 0) ||
           (json_is_array(v) && json_array_size(v) == 0);
}

#ifdef __cplusplus
[[noreturn]]
#else
_Noreturn
#endif
static inline void
json_die(const JsonPart *p, const char *key, const char *what) {
    die(EXIT_USAGE, "%s: %s%s%s %s", p->path, p->section, *p->section ? "." : "", key, what);
}

static inline bool json_bool(const JsonPart *p, const char *key, bool fallback) {
    const json_t *v = json_object_get(p->object, key);
    if (!v || json_is_null(v)) return fallback;
    if (!json_is_boolean(v)) json_die(p, key, "must be true or false");
    return json_is_true(v);
}

static inline double json_number(const JsonPart *p, const char *key, double fallback) {
    const json_t *v = json_object_get(p->object, key);
    if (!v || json_is_null(v)) return fallback;
    if (!json_is_number(v)) json_die(p, key, "must be a number");
    return json_number_value(v);
}

// A whole number in the range that ClipConfig can hold; a pair of equal ones (as image sizes are) counts as
// one. `fallback` is the default; negative: the key must be there.
static inline int json_int(const JsonPart *p, const char *key, int fallback) {
    const json_t *v = json_object_get(p->object, key);
    if (json_is_array(v) && json_array_size(v) == 2 && json_equal(json_array_get(v, 0), json_array_get(v, 1)))
        v = json_array_get(v, 0);
    if ((!v || json_is_null(v)) && fallback >= 0) return fallback;
    if (json_is_array(v))
        json_die(p, key,
            strcmp(key, "layers") ? "must be one number: only square images and patches are supported"
                                  : "is a list: a ResNet; only ViT image towers are supported");
    if (!v || !json_is_integer(v)) json_die(p, key, v ? "must be a whole number" : "is missing");
    if (json_integer_value(v) < 0 || json_integer_value(v) > 1 << 24) json_die(p, key, "is out of range");
    return (int)json_integer_value(v);
}

// The object `section` of `top` ("" is `top` itself); ends the program when CONFIG_KEYS does not allow one of
// its keys or values.
static inline JsonPart json_section(const char *path, json_t *top, const char *section) {
    JsonPart p = {path, section, *section ? json_object_get(top, section) : top};
    if (!json_is_object(p.object))
        die(EXIT_USAGE, "%s: has no %s; give a configuration in open_clip's form", path,
            *section ? section : "object at its top");
    const char *key;
    json_t *value;
    json_object_foreach(p.object, key, value) {
        const char *rule = NULL;
#define X(where, known, may_hold) \
    if (strcmp(section, where) == 0 && strcmp(key, known) == 0) rule = may_hold;
        CONFIG_KEYS(X)
#undef X
        if (!rule) json_die(&p, key, "is not a known key");
        bool refused = strcmp(rule, "off") == 0 && !json_is_off(value);
        if (rule[0] == '=')
            refused = !json_is_null(value) &&
                      !(json_is_string(value) && strcmp(json_string_value(value), rule + 1) == 0);
        if (refused)
            json_die(&p, key, "is set: not the plain ViT and causal text transformer that is supported");
    }
    return p;
}

// norm_kwargs: {"eps": x}
static inline float json_ln_eps(const JsonPart *p) {
    json_t *kwargs = json_object_get(p->object, "norm_kwargs");
    if (json_is_off(kwargs)) return 1e-5f;
    json_t *eps = json_object_get(kwargs, "eps");
    if (json_object_size(kwargs) != 1 || !json_is_number(eps))
        json_die(p, "norm_kwargs", "may hold eps only");
    return (float)json_number_value(eps);
}

// The place of the value in the list "a|b|c"; 0 when the key is missing.
static inline int json_choice(const JsonPart *p, const char *key, const char *choices) {
    const json_t *v = json_object_get(p->object, key);
    if (!v || json_is_null(v)) return 0;
    const char *text = json_is_string(v) ? json_string_value(v) : "";
    int place = 0;
    for (const char *c = choices; *c; place++) {
        size_t n = strcspn(c, "|");
        if (n == strlen(text) && strncmp(c, text, n) == 0) return place;
        c += n + (c[n] == '|');
    }
    char what[128];
    snprintf(what, sizeof what, "must be one of %s", choices);
    json_die(p, key, what);
}

static inline void json_triple(const JsonPart *p, const char *key, float *r, float *g, float *b) {
    const json_t *v = json_object_get(p->object, key);
    if (!v || json_is_null(v)) return;
    float *out[3] = {r, g, b};
    for (size_t i = 0; i < 3; i++) {
        const json_t *x = json_is_array(v) && json_array_size(v) == 3 ? json_array_get(v, i) : NULL;
        if (!json_is_number(x)) json_die(p, key, "must be three numbers");
        *out[i] = (float)json_number_value(x);
    }
}

// open_clip's model configuration, or the hub's {model_cfg, preprocess_cfg}.
static inline void model_from_json(const char *path, json_t *file, ClipConfig *out) {
    json_t *hub = json_object_get(file, "model_cfg");
    JsonPart top = json_section(path, hub ? hub : file, "");
    JsonPart image = json_section(path, top.object, "vision_cfg");
    JsonPart text = json_section(path, top.object, "text_cfg");
    model_defaults(out);
    out->embed_dim = json_int(&top, "embed_dim", -1);
    out->quick_gelu = json_bool(&top, "quick_gelu", false);
    out->image_size = json_int(&image, "image_size", 224);
    out->patch_size = json_int(&image, "patch_size", 16);
    out->image_width = json_int(&image, "width", 768);
    out->image_layers = json_int(&image, "layers", 12);
    out->ln_pre = !json_bool(&image, "no_ln_pre", false);
    out->context_length = json_int(&text, "context_length", 77);
    out->vocab_size = json_int(&text, "vocab_size", CLIP_VOCABULARY);
    out->text_width = json_int(&text, "width", 512);
    out->text_heads = json_int(&text, "heads", 8);
    out->text_layers = json_int(&text, "layers", 12);
    out->image_ln_eps = json_ln_eps(&image);
    out->text_ln_eps = json_ln_eps(&text);
    double image_ratio = json_number(&image, "mlp_ratio", 4);
    double text_ratio = json_number(&text, "mlp_ratio", 4);
    if (!(image_ratio > 0 && image_ratio <= 64))
        json_die(&image, "mlp_ratio", "must be above 0 and at most 64");
    if (!(text_ratio > 0 && text_ratio <= 64)) json_die(&text, "mlp_ratio", "must be above 0 and at most 64");
    model_derive(out, json_int(&image, "head_width", 64), image_ratio, text_ratio);

    JsonPart preprocess = {path, "preprocess_cfg", json_object_get(file, "preprocess_cfg")};
    if (!hub || json_is_off(preprocess.object)) return;
    if (!json_is_object(preprocess.object)) die(EXIT_USAGE, "%s: preprocess_cfg must be an object", path);
    out->interpolation = json_choice(&preprocess, "interpolation", "bicubic|bilinear");
    out->resize_mode = json_choice(&preprocess, "resize_mode", "shortest|squash|longest");
    if (!json_is_off(json_object_get(preprocess.object, "fill_color")))
        json_die(&preprocess, "fill_color", "must be 0");
    json_triple(&preprocess, "mean", &out->mean_r, &out->mean_g, &out->mean_b);
    json_triple(&preprocess, "std", &out->std_r, &out->std_g, &out->std_b);
}

// Fills `out` for a name of MODEL_CONFIGS, or from a JSON file; out->name is the name, or the file's stem.
// Ends the program with one line when the model is unknown, or when the file describes another kind of model
// than a plain ViT with a causal text transformer.
static inline void model_load(const char *name_or_json, ClipConfig *out) {
    if (model_find(name_or_json, out)) return;
    if (!file_exists(name_or_json)) {
        char fault[1024];
        model_fault(name_or_json, fault);
        die(EXIT_USAGE, "%s", fault);
    }
    size_t length;
    char *text = file_read_all(name_or_json, &length), why[256];
    json_error_t error;
    json_t *file = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!file) die(EXIT_USAGE, "%s: not valid JSON (line %d: %s)", name_or_json, error.line, error.text);
    model_from_json(name_or_json, file, out);
    json_decref(file);
    if (!config_check(out, why)) die(EXIT_USAGE, "%s: %s", name_or_json, why);

    const char *slash = strrchr(name_or_json, '/'), *stem = slash ? slash + 1 : name_or_json;
    snprintf(out->name, sizeof out->name, "%s", stem);
    if (ends_with(out->name, ".json")) out->name[strlen(out->name) - 5] = 0;
}

// ---------------------------------------------------------------- the tables as JSON (train_clip --schema)

// Separates the entries of a list, one a line.
static inline void schema_next(FILE *f, bool *first) {
    fputs(*first ? "\n    " : ",\n    ", f);
    *first = false;
}

// Adds to an object which models have the tensor or tower: those where (field & bits) == value.
static inline void schema_condition(FILE *f, TensorCondition condition) {
    const char *format = ", \"present\": {\"field\": \"%s\", \"bits\": %d, \"value\": %d}";
    switch (condition) {
#define X(name, field, bits, value)                                  \
    case name:                                                       \
        if (name != ALWAYS) fprintf(f, format, #field, bits, value); \
        break;
        TENSOR_CONDITIONS(X)
#undef X
    }
}

// A tensor as an object. tower: "image", "text", "none", or NULL for a tensor of a block. Shape and group are
// sums of products of numbers, the letters in TOWER_SIZES, T, and l, the block's number.
static inline void schema_tensor(FILE *f, const char *tower, const char *field, const char *key,
    TensorCondition condition, bool decay, const char *group, const char *shape) {
    fputc('{', f);
    if (tower) fprintf(f, "\"tower\": \"%s\", ", tower);
    fprintf(f, "\"field\": \"%s\", \"key\": \"%s\", \"decay\": %s, ", field, key, decay ? "true" : "false");
    fprintf(f, "\"group\": \"%s\", \"shape\": [\"", group);
    for (const char *c = shape; *c; c++) {
        if (*c == ',') fputs("\",", f);
        else if (*c == ' ' && c[-1] == ',') fputs(" \"", f);
        else fputc(*c, f);
    }
    fputs("\"]", f);
    schema_condition(f, condition);
    fputc('}', f);
}

static inline void schema_tensors(FILE *f) {
    bool first = true;
    fputs("  \"towers\": {", f);
    for (int tower = IMAGE_TOWER; tower <= TEXT_TOWER; tower++) {
        const bool image = tower == IMAGE_TOWER;
        schema_next(f, &first);
        fprintf(
            f, "\"%s\": {\"prefix\": \"%s\", \"sizes\": {", image ? "image" : "text", image ? "visual." : "");
#define X(letter, of_image, of_text) fprintf(f, "\"%s\": \"%s\", ", #letter, image ? #of_image : #of_text);
        TOWER_SIZES(X)
#undef X
        // grid: image_size / patch_size, rounded down (config_grid)
        fprintf(f, "\"T\": \"%s\"}", image ? "grid * grid + 1" : "context_length");
        schema_condition(f, image ? ALWAYS : WITH_TEXT);
        fputc('}', f);
    }
    fputs("\n  },\n  \"tensors\": [", f);
    first = true;
#define X(field, key, condition, decay, group, ...) \
    schema_next(f, &first);                         \
    schema_tensor(f, tower, #field, key, condition, decay, #group, #__VA_ARGS__);
    const char *tower = "image";
    IMAGE_TENSORS(X)
    tower = "text";
    TEXT_TENSORS(X)
    tower = "none";
    X(logit_scale, LOGIT_SCALE_KEY, ALWAYS, NO_DECAY, 0, 1)
#undef X
    fputs("\n  ],\n  \"blocks\": [", f);
    first = true;
#define X(field, key, decay, group, ...) \
    schema_next(f, &first);              \
    schema_tensor(f, NULL, #field, key, ALWAYS, decay, #group, #__VA_ARGS__);
    BLOCK_TENSORS(X)
#undef X
    fputs("\n  ],\n", f);
}

static inline void schema_models(FILE *f) {
    bool first = true;
    fputs("  \"models\": [", f);
#define X(name, embed, image, patch, width, layers, head_width, ratio, text_width, text_heads, text_layers, \
    suffixed)                                                                                               \
    schema_next(f, &first);                                                                                 \
    fprintf(f, "{\"name\": \"%s\", \"embed_dim\": %d, \"image_size\": %d, ", name, embed, image);           \
    fprintf(f, "\"patch_size\": %d, \"image_width\": %d, \"image_layers\": %d, ", patch, width, layers);    \
    fprintf(f, "\"head_width\": %d, \"mlp_ratio\": %.9g, ", head_width, (double)(ratio));                   \
    fprintf(f, "\"text_width\": %d, \"text_heads\": %d, \"text_layers\": %d, ", text_width, text_heads,     \
        text_layers);                                                                                       \
    fprintf(f, "\"quickgelu\": %s}", suffixed ? "true" : "false");
    MODEL_CONFIGS(X)
#undef X
    fputs("\n  ],\n  \"config_keys\": [", f);
    first = true;
#define X(section, key, may_hold) \
    schema_next(f, &first);       \
    fprintf(f, "{\"section\": \"%s\", \"key\": \"%s\", \"may_hold\": \"%s\"}", section, key, may_hold);
    CONFIG_KEYS(X)
#undef X
    fputs("\n  ]\n", f);
}

static inline void schema_tags(FILE *f) {
    bool first = true;
    fputs("  \"tags\": [", f);
#define T(model, tag, activation, repository, extra)                                                     \
    schema_next(f, &first);                                                                              \
    fprintf(f, "{\"model\": \"%s\", \"tag\": \"%s\", \"activation\": \"%s\", ", model, tag, activation); \
    fprintf(f, "\"repository\": \"%s\", \"extra\": \"%s\"}", repository, extra);
    PRETRAINED_TAGS(T)
#undef T
    fputs("\n  ],\n", f);
}

// Prints the tables of weights.h, pretrained_tags.h and of this file as JSON, one entry a line; the exit
// code. data/schema.json is this output, and dev/models.py reads it.
static inline int schema_print(FILE *f) {
    bool first = true;
    fputs("{\n  \"constants\": {", f);
#define CONSTANT(name)      \
    schema_next(f, &first); \
    fprintf(f, "\"%s\": %d", #name, name);
    CONSTANT(WEIGHTS_MAGIC)
    CONSTANT(WEIGHTS_VERSION)
    CONSTANT(WEIGHTS_ALIGNMENT)
    CONSTANT(HEADER_INTS)
    CONSTANT(HEADER_MAGIC)
    CONSTANT(HEADER_VERSION)
    CONSTANT(HEADER_DTYPE)
    CONSTANT(HEADER_FIELDS)
    CONSTANT(HEADER_MERGES_BYTES)
    CONSTANT(HEADER_TENSORS)
    CONSTANT(HEADER_TOKENIZER)
    CONSTANT(HEADER_CONFIG)
    CONSTANT(HEADER_NAME)
    CONSTANT(NAME_BYTES)
    CONSTANT(DTYPE_FP32)
    CONSTANT(DTYPE_BF16)
    CONSTANT(TOKENIZER_MERGES)
    CONSTANT(TOKENIZER_VOCABULARY)
    CONSTANT(TOKENIZER_MOST_BYTES)
    CONSTANT(SEAL_BLOCK)
    CONSTANT(SEAL_MAGIC)
    CONSTANT(ABSENT_TEXT)
    CONSTANT(ABSENT_IMAGE_PROJ)
    CONSTANT(CLIP_VOCABULARY)
#undef CONSTANT
    fputs("\n  },\n  \"fields\": [", f);
    first = true;
#define X(type, name, low, high)                                                                    \
    schema_next(f, &first);                                                                         \
    fprintf(f, "{\"name\": \"%s\", \"type\": \"%s\", \"low\": %.9g, \"high\": %.9g}", #name, #type, \
        (double)(low), (double)(high));
    CONFIG_FIELDS(X)
#undef X
    fputs("\n  ],\n", f);
    vocabulary_schema(f);
    schema_tensors(f);
    schema_tags(f);
    schema_models(f);
    fputs("}\n", f);
    return fflush(f) || ferror(f) ? EXIT_RUNTIME : EXIT_SUCCESS;
}

#endif
