// From the options to a model: pretrained, random, or single towers from files (LiT); resized positions; what
// trains.
#ifndef CLIPC_OPEN_MODEL_H
#define CLIPC_OPEN_MODEL_H

#include "clipc/model/clip.h"          // Clip
#include "clipc/model/architectures.h" // model_load
#include "clipc/base/options.h"        // Options
#include "clipc/data/tokenizer.h"      // tokenizer_builtin_merges
#include "clipc/data/transform.h"      // ResizeMode, bicubic

#include <ctype.h> // tolower
#include <math.h>  // fmax, floor, ceil

// ---------------------------------------------------------------- what others publish

// A tag as the table writes it: open_clip takes laion2b-s34b-b79k as well.
static inline bool tag_is(const char *given, const char *tag) {
    for (; *given && *tag; given++, tag++)
        if ((*given == '-' ? '_' : tolower((unsigned char)*given)) != *tag) return false;
    return *given == *tag;
}

// Lists in `text`, of `size` bytes, the tags of this model, or where `model` is NULL the models that have
// this tag; returns how many.
static inline int tags_list(char *text, size_t size, const char *model, const char *tag) {
    int count = 0;
    text[0] = 0;
#define T(name, known, activation, repository, extra)                                    \
    if (model ? strcmp(model, name) == 0 : tag_is(tag, known)) {                         \
        const size_t n = strlen(text);                                                   \
        snprintf(text + n, size - n, "%s%s", count++ ? ", " : "", model ? known : name); \
    }
    PRETRAINED_TAGS(T)
#undef T
    return count;
}

// Is there such a tag of this model?
static inline bool tag_exists(const char *model, const char *tag) {
    bool found = false;
#define T(name, known, activation, repository, extra) found |= strcmp(model, name) == 0 && tag_is(tag, known);
    PRETRAINED_TAGS(T)
#undef T
    return found;
}

// Names of open_clip, in lower case, that are not in the table: pattern, why
#define FOREIGN_MODELS(M)                                                                                   \
    M("rn50*|rn101*|resnet*", "is a ResNet; only ViT image towers are supported")                           \
    M("coca*", "CoCa has a text decoder, which is not supported")                                           \
    M("*-cl[0-9]*", "CLIPA's towers pool by the mean, which is not supported")                              \
    M("*siglip*|*roberta*|xlm-*|mt5-*|nllb-*|eva*|convnext*|mobileclip*|vitamin*|*-worldwide*|vit-*-htxt*|" \
      "swin*|vit_*_patch*|pe-*|*naflex*|*genl*p*|*clap*|vit-*-dec|*-alphaclip*",                            \
        "has other towers than a plain ViT and a causal text transformer, which alone are supported")

// Is this the name of a repository of the model hub, such as openai/clip-vit-base-patch32?
static inline bool is_hub_name(const char *name) {
    const char *slash = strchr(name, '/');
    if (strncmp(name, "hf-hub:", 7) == 0) return true;
    if (!slash || slash == name || !slash[1] || strchr(slash + 1, '/') || name[0] == '.') return false;
    for (const char *p = name; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("/-_.", *p)) return false;
    return !matches_any("*.bin|*.pt|*.pth|*.json|*.safetensors|*.npz|*.state|*.ckpt", name);
}

// Writes what to do about a model that others name, but that is not in our table; false where the name is not
// one of those.
static inline bool foreign_model(const char *name, char text[1024]) {
    char lower[256];
    lower_case(lower, sizeof lower, name);
    const bool local = strncmp(name, "local-dir:", 10) == 0;
    if (local || is_hub_name(name)) {
        const char *source = local ? name + 10 : name, *slash = strrchr(source, '/');
        const char *stem = slash && slash[1] ? slash + 1 : "model";
        snprintf(text, 1024,
            "--model %.200s: is converted first: python3 dev/convert.py %.200s -o weights/%.100s.bin; then "
            "give "
            "--pretrained weights/%.100s.bin",
            name, source, stem, stem);
        return true;
    }
#define M(patterns, why)                                                                                   \
    if (matches_any(patterns, lower)) {                                                                    \
        snprintf(text, 1024, "--model %.200s: " why " (dev/convert.py --list shows what there is)", name); \
        return true;                                                                                       \
    }
    FOREIGN_MODELS(M)
#undef M
    return false;
}

// ---------------------------------------------------------------- files and configurations

// The name of a model in file names and in the table of tags: no slash (ViT-B/32), and there no -quickgelu.
static inline void model_plain_name(const char *model, bool base, char name[NAME_BYTES]) {
    snprintf(name, NAME_BYTES, "%s", model);
    for (char *p = name; *p; p++) *p = *p == '/' ? '-' : *p;
    if (base && ends_with(name, QUICKGELU_SUFFIX)) name[strlen(name) - strlen(QUICKGELU_SUFFIX)] = 0;
}

// Path of a tag's weights: MODEL-TAG.bin in --cache-dir.
static inline void tag_path(const Options *o, const char *model, char path[PATH_SIZE]) {
    char name[NAME_BYTES];
    model_plain_name(model, false, name);
    path_format(path, "%s/%s-%s.bin", o->cache_dir, name, o->pretrained);
}

// Path of the weights: the file that --pretrained names, or those of the tag.
static inline void pretrained_path(const Options *o, char path[PATH_SIZE]) {
    path_format(path, "%s", o->pretrained);
    if (!file_exists(path) && o->model) tag_path(o, o->model, path);
}

// Writes what is wrong with a tag whose weights are not there: the command that brings them, or which tags
// the model has.
static inline void tag_fault(const Options *o, char text[1024]) {
    char path[PATH_SIZE], list[512], model[NAME_BYTES];
    const char *tag = o->pretrained;
    if (o->model) {
        model_plain_name(o->model, true, model);
        const int count = tags_list(list, sizeof list, model, NULL);
        if (!tag_exists(model, tag)) {
            snprintf(text, 1024,
                "--model %.99s --pretrained %.99s: no such file, and no tag of this model%s%s", o->model, tag,
                count ? "; it has " : "", list);
            return;
        }
    }
    const int owners = tags_list(list, sizeof list, NULL, tag);
    if (!o->model) snprintf(model, sizeof model, "%.*s", (int)strcspn(list, ","), list);
    const char *name = o->model ? o->model : model;
    tag_path(o, name, path);
    snprintf(text, 1024,
        "--model %.99s --pretrained %.99s: %.200s does not exist; make it with: python3 dev/convert.py "
        "--model "
        "%.99s --pretrained %.99s -o %.200s",
        name, tag, path, name, tag, path);
    if (o->model) return;
    const size_t n = (size_t)snprintf(text, 1024,
        "--pretrained %.99s: a tag needs its model, too: --model %.99s --pretrained %.99s%s%s%s", tag, name,
        tag, owners > 1 ? " (or one of " : "", owners > 1 ? strchr(list, ' ') + 1 : "",
        owners > 1 ? ")" : "");
    if (file_exists(path)) return;
    snprintf(text + n, 1024 - n,
        "; its weights are made with: python3 dev/convert.py --model %.99s --pretrained %.99s -o %.200s",
        name, tag, path);
}

// Writes why the weights of --pretrained cannot be opened, and what to do; false where they seem to be there.
static inline bool pretrained_fault(const Options *o, char text[1024]) {
    static const char files[] = "/*|./*|../*|~*|*.bin|*.pt|*.pth|*.ckpt|*.safetensors|*.npz";
    char path[PATH_SIZE], list[512];
    const char *given = o->pretrained, *slash = strrchr(given, '/'), *stem = slash ? slash + 1 : given;
    pretrained_path(o, path);
    if (is_directory(path) || (!file_exists(path) && !matches_any(files, given) && is_hub_name(given))) {
        snprintf(text, 1024,
            "--pretrained %.200s: is not a packed .bin; make one with: python3 dev/convert.py %.200s -o "
            "weights/%.100s.bin, and give that",
            given, given, is_directory(path) && !*stem ? "model" : stem);
        return true;
    }
    if (file_exists(path)) return false;
    if (!matches_any(files, given) && (o->model || tags_list(list, sizeof list, NULL, given)))
        tag_fault(o, text);
    else
        snprintf(text, 1024,
            "--pretrained %.200s: no such file; give a packed .bin, or a tag together with --model NAME "
            "(dev/convert.py --list shows them)",
            given);
    return true;
}

static const char no_model[] = "no model; give --pretrained FILE.bin to fine-tune, or --model NAME to start "
                               "from random weights (see --help)";

// Notes what is wrong with the options that name a model: options_end_refused() tells it.
static inline void model_check_options(Options *o) {
    char text[1024];
    ClipConfig config;
    const bool unknown = o->model && !model_find(o->model, &config) && !file_exists(o->model);
    if (unknown) {
        if (!foreign_model(o->model, text)) model_fault(o->model, text);
        options_refuse(o, "%s", text);
    }
    if (o->pretrained && !(unknown && !strpbrk(o->pretrained, "/.")) && pretrained_fault(o, text))
        options_refuse(o, "%s", text);
    if (!o->model && !o->pretrained && !o->pretrained_image && !o->pretrained_text)
        options_refuse(o, "%s", no_model);
}

// The first field in which two configurations differ; NULL when they are equal (names aside).
static inline const char *config_difference(const ClipConfig *a, const ClipConfig *b) {
#define X(type, name, low, high) \
    if (a->name != b->name) return #name;
    CONFIG_FIELDS(X)
#undef X
    return NULL;
}

// ---------------------------------------------------------------- positions
//
// Position embeddings for another number of positions, as open_clip resizes them for other images
// (--force-image-size) or captions by torch.nn.functional.interpolate.

// The largest number of taps that positions_taps() returns.
static inline int positions_most_taps(int to, int from) {
    return (int)ceil(4 * fmax(1, (double)from / to)) + 2;
}

// The taps of output position i on an axis that goes from `from` positions to `to`: returns their number and
// sets weight (positions_most_taps()), which sums to 1, and *first, the input position of the first one. When
// shrinking the kernel is widened by from / to; taps outside of the input are dropped.
static inline int positions_taps(double *weight, int *first, int i, int to, int from) {
    const double scale = (double)from / to;
    const double width = fmax(1, scale);
    const double centre = scale * (i + 0.5);
    const int low = (int)fmax(0, floor(centre - 2 * width + 0.5));
    const int high = (int)fmin(from, floor(centre + 2 * width + 0.5));
    double sum = 0;
    for (int j = low; j < high; j++) {
        weight[j - low] = bicubic((j - centre + 0.5) / width);
        sum += weight[j - low];
    }
    for (int j = low; j < high; j++) weight[j - low] /= sum;
    *first = low;
    return high - low;
}

// out (1 + to_grid², C) from in (1 + from_grid², C): row 0, of the class token, is copied; the others, a
// square of positions, are interpolated bicubically with antialiasing, corners not aligned (open_clip's
// resize_pos_embed). Equal grids: a copy.
static inline void positions_resize_image(float *out, int to_grid, const float *in, int from_grid, int C) {
    const size_t width = (size_t)C;
    if (to_grid == from_grid) {
        memcpy(out, in, ((size_t)to_grid * (size_t)to_grid + 1) * width * sizeof(float));
        return;
    }
    memcpy(out, in, width * sizeof(float));
    const size_t most = (size_t)positions_most_taps(to_grid, from_grid);
    double *wy = (double *)malloc_check(most * sizeof *wy);
    double *wx = (double *)malloc_check(most * sizeof *wx);
    double *sum = (double *)malloc_check(width * sizeof *sum);
    for (int y = 0; y < to_grid; y++)
        for (int x = 0; x < to_grid; x++) {
            int top, left;
            const int rows = positions_taps(wy, &top, y, to_grid, from_grid);
            const int columns = positions_taps(wx, &left, x, to_grid, from_grid);
            for (size_t c = 0; c < width; c++) sum[c] = 0;
            for (int j = 0; j < rows * columns; j++) {
                const int tap = (top + j / columns) * from_grid + left + j % columns;
                const float *row = in + (1 + (size_t)tap) * width;
                const double weight = wy[j / columns] * wx[j % columns];
                for (size_t c = 0; c < width; c++) sum[c] += weight * row[c];
            }
            float *to = out + (1 + (size_t)y * (size_t)to_grid + (size_t)x) * width;
            for (size_t c = 0; c < width; c++) to[c] = (float)sum[c];
        }
    free(sum);
    free(wx);
    free(wy);
}

// out (to_length, C) from in (from_length, C): linear, no antialiasing, corners not aligned (open_clip's
// resize_text_pos_embed). Equal lengths: a copy.
static inline void positions_resize_text(float *out, int to_length, const float *in, int from_length, int C) {
    const size_t width = (size_t)C;
    for (int i = 0; i < to_length; i++) {
        const double position = fmax(0, (double)from_length / to_length * (i + 0.5) - 0.5);
        const int below = (int)position;
        const int above = below + 1 < from_length ? below + 1 : below;
        const double share = position - below;
        const float *a = in + (size_t)below * width, *b = in + (size_t)above * width;
        for (size_t c = 0; c < width; c++)
            out[(size_t)i * width + c] = (float)((1 - share) * a[c] + share * b[c]);
    }
}

// ---------------------------------------------------------------- changes to a model

// Applies the options that change the configuration (activation, preprocessing); they are saved with the
// model.
static inline void model_apply_options(Clip *clip, const Options *o) {
    ClipConfig *c = &clip->config;
    if (o->force_quick_gelu) c->quick_gelu = 1;
    if (options_was_set(o, image_mean)) {
        c->mean_r = (float)o->image_mean.v[0];
        c->mean_g = (float)o->image_mean.v[1];
        c->mean_b = (float)o->image_mean.v[2];
    }
    if (options_was_set(o, image_std)) {
        c->std_r = (float)o->image_std.v[0];
        c->std_g = (float)o->image_std.v[1];
        c->std_b = (float)o->image_std.v[2];
    }
    if (o->image_interpolation) c->interpolation = strcmp(o->image_interpolation, "bilinear") == 0;
    if (o->image_resize_mode)
        c->resize_mode = strcmp(o->image_resize_mode, "squash") == 0    ? RESIZE_SQUASH
                         : strcmp(o->image_resize_mode, "longest") == 0 ? RESIZE_LONGEST
                                                                        : RESIZE_SHORTEST;
    char error[256];
    if (!config_check(c, error)) die(EXIT_USAGE, "%s", error);
}

// Copies the tensors of a tower (NO_TOWER: all) that both models have in the same shape; returns how many
// tensors of `to` were left as they are.
static inline int model_copy(Clip *to, const Clip *from, int tower) {
    int left = 0;
    for (int i = 0; i < to->tensors.count; i++) {
        const Tensor *x = &to->tensors.list[i], *y = tensor_find(&from->tensors, x->name);
        if (tower != NO_TOWER && x->tower != tower) continue;
        if (!y || y->ndim != x->ndim || memcmp(y->shape, x->shape, (size_t)x->ndim * sizeof *x->shape) != 0) {
            left++;
            continue;
        }
        float *values = (float *)malloc_check(x->count * sizeof *values);
        clip_read(from, ARENA_PARAMETERS, y, values);
        clip_write(to, ARENA_PARAMETERS, x, values);
        free(values);
    }
    return left;
}

// The model for another image size or context length: positions are interpolated, all else is copied. Frees
// `clip`, or returns it where nothing changes.
static inline Clip *model_resize(Clip *clip, int image_size, int context_length) {
    ClipConfig config = clip->config;
    char error[256];
    config.image_size = image_size;
    config.context_length = context_length;
    if (!config_difference(&config, &clip->config)) return clip;
    if (!config_check(&config, error))
        die(EXIT_USAGE, "--force-image-size, --force-context-length: %s", error);
    Clip *out = clip_create_empty(&config, clip->merges, clip->merges_bytes);
    model_copy(out, clip, NO_TOWER);
    const char *names[2] = {"visual.positional_embedding", "positional_embedding"};
    for (int tower = 0; tower < 2; tower++) {
        const Tensor *x = tensor_find(&out->tensors, names[tower]);
        const Tensor *y = tensor_find(&clip->tensors, names[tower]);
        if (x->count == y->count) continue;
        float *from = (float *)malloc_check(y->count * sizeof *from);
        float *to = (float *)malloc_check(x->count * sizeof *to);
        clip_read(clip, ARENA_PARAMETERS, y, from);
        if (tower == IMAGE_TOWER)
            positions_resize_image(
                to, config_grid(&config), from, config_grid(&clip->config), config.image_width);
        else positions_resize_text(to, context_length, from, clip->config.context_length, config.text_width);
        clip_write(out, ARENA_PARAMETERS, x, to);
        free(from);
        free(to);
    }
    clip_free(clip);
    return out;
}

// ---------------------------------------------------------------- opening

// Copies the image tower's fields and its preprocessing.
static inline void config_take_image(ClipConfig *c, const ClipConfig *from) {
    c->image_size = from->image_size;
    c->patch_size = from->patch_size;
    c->image_width = from->image_width;
    c->image_layers = from->image_layers;
    c->image_heads = from->image_heads;
    c->image_mlp = from->image_mlp;
    c->ln_pre = from->ln_pre;
    c->patch_bias = from->patch_bias;
    c->image_ln_eps = from->image_ln_eps;
    c->interpolation = from->interpolation;
    c->resize_mode = from->resize_mode;
    c->quick_gelu = from->quick_gelu;
    c->mean_r = from->mean_r;
    c->mean_g = from->mean_g;
    c->mean_b = from->mean_b;
    c->std_r = from->std_r;
    c->std_g = from->std_g;
    c->std_b = from->std_b;
}

// Copies the text tower's fields.
static inline void config_take_text(ClipConfig *c, const ClipConfig *from) {
    c->context_length = from->context_length;
    c->vocab_size = from->vocab_size;
    c->text_width = from->text_width;
    c->text_layers = from->text_layers;
    c->text_heads = from->text_heads;
    c->text_mlp = from->text_mlp;
    c->eot_id = from->eot_id;
    c->text_ln_eps = from->text_ln_eps;
    c->quick_gelu = from->quick_gelu;
}

// --pretrained-image, --pretrained-text: one or both towers from files (LiT, Zhai et al. 2022), the rest
// random, in the architecture of --model, else of the file. A projection that a file lacks, or has for
// another embed_dim, is drawn at random and trains even where the tower is locked.
static inline Clip *model_open_towers(Options *o) {
    const char *paths[2] = {o->pretrained_image, o->pretrained_text};
    Clip *parts[2] = {NULL, NULL};
    ClipConfig config;
    for (int tower = 0; tower < 2; tower++) parts[tower] = paths[tower] ? clip_load(paths[tower]) : NULL;
    const Clip *only = parts[0] ? parts[0] : parts[1];
    if (parts[1] && (parts[1]->config.absent & ABSENT_TEXT))
        die(EXIT_USAGE, "--pretrained-text %s: has no text tower", paths[1]);
    if (parts[0] && parts[1] && parts[0]->config.quick_gelu != parts[1]->config.quick_gelu)
        die(EXIT_USAGE, "--pretrained-image and --pretrained-text: one tower uses QuickGELU, the other GELU; "
                        "a model has one activation");
    if (o->model) model_load(o->model, &config);
    else config = only->config;
    if (!o->model && !parts[1] && (only->config.absent & ABSENT_TEXT))
        die(EXIT_USAGE,
            "--pretrained-image %s: has no text tower; give --model NAME for the architecture of a new one",
            paths[0]);
    if (parts[0]) config_take_image(&config, &parts[0]->config);
    if (parts[1]) config_take_text(&config, &parts[1]->config);
    if (parts[1] && !o->model && (only->config.absent & ABSENT_IMAGE_PROJ))
        config.embed_dim = parts[1]->config.embed_dim; // the image file has no embed_dim of its own
    config.absent = 0;
    const Clip *words = parts[1]                                                       ? parts[1]
                        : config.vocab_size == only->config.vocab_size && only->merges ? only
                                                                                       : NULL;
    const bool builtin = !words && config.vocab_size == CLIP_VOCABULARY;
    Clip *clip = clip_create(&config,
        builtin ? tokenizer_builtin_merges
        : words ? words->merges
                : NULL,
        builtin ? tokenizer_builtin_merges_length
        : words ? words->merges_bytes
                : 0,
        (uint64_t)o->seed);
    int64_t *groups[2] = {&o->lock_image_unlocked_groups, &o->lock_text_unlocked_layers};
    const bool locked[2] = {o->lock_image, o->lock_text};
    for (int tower = 0; tower < 2; tower++) {
        if (!parts[tower]) continue;
        if (model_copy(clip, parts[tower], tower) && locked[tower] && *groups[tower] == 0) {
            *groups[tower] = 1;
            warn("%s: has no projection to %d numbers; a random one is trained, --lock-%s freezes the rest",
                paths[tower], config.embed_dim, tower == IMAGE_TOWER ? "image" : "text");
        }
        clip_free(parts[tower]);
    }
    return clip;
}

static inline Clip *model_open_pretrained(const Options *o) {
    char path[PATH_SIZE], fault[1024];
    if (pretrained_fault(o, fault)) die(EXIT_USAGE, "%s", fault);
    pretrained_path(o, path);
    Clip *clip = clip_load(path);
    if (clip->config.absent)
        die(EXIT_USAGE,
            "%s: holds only an image tower; use it as --pretrained-image, with --model NAME for the text "
            "tower",
            path);
    if (o->model) { // activation and preprocessing are the file's, not those of the name
        ClipConfig wanted, file = clip->config;
        model_load(o->model, &wanted);
        file.quick_gelu = wanted.quick_gelu;
        file.interpolation = wanted.interpolation;
        file.resize_mode = wanted.resize_mode;
        file.mean_r = wanted.mean_r;
        file.mean_g = wanted.mean_g;
        file.mean_b = wanted.mean_b;
        file.std_r = wanted.std_r;
        file.std_g = wanted.std_g;
        file.std_b = wanted.std_b;
        const char *field = config_difference(&wanted, &file);
        if (field)
            die(EXIT_USAGE,
                "%s: is not a %s, %s differs; leave --model out to take the architecture of the file", path,
                o->model, field);
    }
    return clip;
}

// The model that the options describe, ready to lock and train; ends the program with one line when they
// describe none.
static inline Clip *model_open(Options *o) {
    Clip *clip;
    if (o->pretrained && (o->pretrained_image || o->pretrained_text))
        die(EXIT_USAGE, "--pretrained gives both towers; leave out --pretrained-image and --pretrained-text");
    if (o->pretrained) {
        clip = model_open_pretrained(o);
    } else if (o->pretrained_image || o->pretrained_text) {
        clip = model_open_towers(o);
    } else if (o->model) {
        ClipConfig config;
        model_load(o->model, &config);
        const bool words = config.vocab_size == CLIP_VOCABULARY;
        clip = clip_create(&config, words ? tokenizer_builtin_merges : NULL,
            words ? tokenizer_builtin_merges_length : 0, (uint64_t)o->seed);
    } else {
        die(EXIT_USAGE, "%s", no_model);
    }
    model_apply_options(clip, o);
    return model_resize(clip,
        options_was_set(o, force_image_size) ? (int)o->force_image_size : clip->config.image_size,
        options_was_set(o, force_context_length) ? (int)o->force_context_length
                                                 : clip->config.context_length);
}

// ---------------------------------------------------------------- precision

// Sets the precision of --precision; auto is the fastest one, and becomes its name, so that a resumed run
// takes the same. A precision that the machine does not support ends the program.
static inline void model_set_precision(Clip *clip, Options *o) {
    static const char *const names[PRECISIONS] = {"fp32", "amp_bf16", "tf32"};
    Precision wanted = PRECISIONS;
    for (int p = 0; p < PRECISIONS; p++)
        if (strcmp(o->precision, names[p]) == 0) wanted = (Precision)p;
    const PrecisionSupport support = wanted == PRECISIONS ? SUPPORT_NATIVE : clip_precision_support(wanted);
    if (support == SUPPORT_NONE)
        die(EXIT_USAGE, "--precision %s: not supported by this machine; use --precision auto", o->precision);
    if (support == SUPPORT_SLOW && !o->resume)
        warn("--precision %s: this processor has no instructions for it: correct but slow; "
             "--precision fp32 is faster",
            o->precision);
    const Precision precision = clip_choose_fastest(wanted);
    o->precision = names[precision];
    clip_set_precision(clip, precision);
}

// ---------------------------------------------------------------- what trains

// Sets which tensors train, their learning rates, and which of them decay.
static inline void model_lock(Clip *clip, const Options *o) {
    if (o->lock_image) clip_lock(clip, IMAGE_TOWER, (int)o->lock_image_unlocked_groups);
    if (o->lock_text) clip_lock(clip, TEXT_TOWER, (int)o->lock_text_unlocked_layers);
    if (o->lock_logit_scale) clip_lock(clip, NO_TOWER, 0);
    if ((options_was_set(o, lr_image) || options_was_set(o, lr_text)) && !(o->lr > 0))
        die(EXIT_USAGE, "--lr-image, --lr-text: also give --lr, which the schedule of the run follows");
    clip_scale_rates(
        clip, IMAGE_TOWER, o->image_layer_decay, options_was_set(o, lr_image) ? o->lr_image / o->lr : 1);
    clip_scale_rates(
        clip, TEXT_TOWER, o->text_layer_decay, options_was_set(o, lr_text) ? o->lr_text / o->lr : 1);
    for (size_t i = 0; i < o->wd_exclude.count; i++)
        if (!clip_exclude_decay(clip, o->wd_exclude.items[i]))
            die(EXIT_USAGE,
                "--wd-exclude %s: matches no tensor; names are open_clip's, e.g. *.mlp.c_fc.weight",
                o->wd_exclude.items[i]);
    if (!clip->tensors.grad_floats)
        die(EXIT_USAGE, "--lock-image --lock-text --lock-logit-scale: nothing is left to train");
}

#endif
