// From the options to a model: pretrained, random, one tower of each (LiT), resized; and what of it trains.
#ifndef CLIPC_OPEN_MODEL_H
#define CLIPC_OPEN_MODEL_H

#include "clipc/model/clip.h"          // Clip
#include "clipc/model/architectures.h" // model_load
#include "clipc/base/options.h"        // Options
#include "clipc/model/positions.h"     // positions_resize_image, positions_resize_text
#include "clipc/data/tokenizer.h"      // tokenizer_builtin_merges
#include "clipc/data/transform.h"      // ResizeMode

// ---------------------------------------------------------------- where it comes from

// MODEL-TAG.bin in --cache-dir, or the file that --pretrained names.
static inline void pretrained_path(const Options *o, char path[PATH_SIZE]) {
    path_format(path, "%s", o->pretrained);
    if (file_exists(path)) return;
    if (!o->model || strchr(o->pretrained, '/') || ends_with(o->pretrained, ".bin"))
        die(EXIT_USAGE,
            "--pretrained %s: no such file; give a packed .bin, or a tag together with --model NAME "
            "(dev/convert.py --list shows them)",
            o->pretrained);
    path_format(path, "%s/%s-%s.bin", o->cache_dir, o->model, o->pretrained);
    if (!file_exists(path))
        die(EXIT_USAGE,
            "--model %s --pretrained %s: %s is not there; bring it with: python3 dev/convert.py --model %s "
            "--pretrained %s -o %s",
            o->model, o->pretrained, path, o->model, o->pretrained, path);
}

// Do two configurations describe the same architecture? Says the first field that differs.
static inline const char *config_difference(const ClipConfig *a, const ClipConfig *b) {
#define X(type, name, low, high) \
    if (a->name != b->name) return #name;
    CONFIG_FIELDS(X)
#undef X
    return NULL;
}

// ---------------------------------------------------------------- changes to a model

// What the options say otherwise than the weight file: it is used from now on, and saved.
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

// Copies the tensors of a tower (NO_TOWER: all) that both models have in the same shape; returns how many of
// them `to` has beyond.
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

// The model for another image size or context length: positions are interpolated as open_clip does, all else
// is copied. Takes over and frees `clip`; the same model where nothing changes.
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

// What of a configuration is the image tower's, and how its pictures are made.
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

// LiT (Zhai et al. 2022) and its mirror: towers out of files, the rest random. The architecture of the rest
// is that of --model, else of the file. A projection that a file does not have, or has for another embedding,
// is drawn at random and trains whatever is locked.
static inline Clip *model_open_towers(Options *o) {
    const char *paths[2] = {o->pretrained_image, o->pretrained_text};
    Clip *parts[2] = {NULL, NULL};
    ClipConfig config;
    for (int tower = 0; tower < 2; tower++) parts[tower] = paths[tower] ? clip_load(paths[tower]) : NULL;
    const Clip *only = parts[0] ? parts[0] : parts[1];
    if (parts[1] && (parts[1]->config.absent & ABSENT_TEXT))
        die(EXIT_USAGE, "--pretrained-text %s: has no text tower", paths[1]);
    if (parts[0] && parts[1] && parts[0]->config.quick_gelu != parts[1]->config.quick_gelu)
        die(EXIT_USAGE, "--pretrained-image and --pretrained-text: one tower computes with QuickGELU, the "
                        "other with GELU; a model has one activation");
    if (o->model) model_load(o->model, &config);
    else config = only->config;
    if (!o->model && !parts[1] && (only->config.absent & ABSENT_TEXT))
        die(EXIT_USAGE,
            "--pretrained-image %s: has no text tower; give --model NAME, whose text tower is to be trained "
            "beside it",
            paths[0]);
    if (parts[0]) config_take_image(&config, &parts[0]->config);
    if (parts[1]) config_take_text(&config, &parts[1]->config);
    if (parts[1] && !o->model && (only->config.absent & ABSENT_IMAGE_PROJ))
        config.embed_dim = parts[1]->config.embed_dim; // the image file has none of its own
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
            warn("%s: has no projection to %d numbers; it is drawn at random and trains, --lock-%s freezes "
                 "the rest",
                paths[tower], config.embed_dim, tower == IMAGE_TOWER ? "image" : "text");
        }
        clip_free(parts[tower]);
    }
    return clip;
}

static inline Clip *model_open_pretrained(const Options *o) {
    char path[PATH_SIZE];
    pretrained_path(o, path);
    Clip *clip = clip_load(path);
    if (clip->config.absent)
        die(EXIT_USAGE,
            "%s: is an image tower alone; use it as --pretrained-image, with --model NAME for the text tower",
            path);
    if (o->model) { // the file knows activation and preprocessing better than the name
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
                "%s: is no %s, %s differs; leave --model out to take the architecture of the file", path,
                o->model, field);
    }
    return clip;
}

// The model that the options name, with what they change about it; ends the program where they name none.
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
        die(EXIT_USAGE, "no model; give --pretrained FILE.bin to fine-tune, or --model NAME to start from "
                        "random weights (--help tells more)");
    }
    model_apply_options(clip, o);
    return model_resize(clip,
        options_was_set(o, force_image_size) ? (int)o->force_image_size : clip->config.image_size,
        options_was_set(o, force_context_length) ? (int)o->force_context_length
                                                 : clip->config.context_length);
}

// ---------------------------------------------------------------- precision

// Sets what --precision says; auto is amp_bf16 where it is fast. A precision that the machine does not have
// ends the program.
static inline void model_set_precision(Clip *clip, const Options *o) {
    const char *const names[PRECISIONS] = {"fp32", "amp_bf16", "tf32"};
    Precision precision =
        clip_precision_support(PRECISION_AMP_BF16) == SUPPORT_NATIVE ? PRECISION_AMP_BF16 : PRECISION_FP32;
    for (int p = 0; p < PRECISIONS; p++)
        if (strcmp(o->precision, names[p]) == 0) precision = (Precision)p;
    const PrecisionSupport support = clip_precision_support(precision);
    if (support == SUPPORT_NONE)
        die(EXIT_USAGE, "--precision %s: this machine does not have it; use --precision auto", o->precision);
    if (support == SUPPORT_SLOW)
        warn("--precision %s: this processor has no instructions for it, so it is right but slow; "
             "--precision fp32 is faster",
            o->precision);
    clip_set_precision(clip, precision);
}

// ---------------------------------------------------------------- what trains

// What trains, at which rate, and what decays.
static inline void model_lock(Clip *clip, const Options *o) {
    if (o->lock_image) clip_lock(clip, IMAGE_TOWER, (int)o->lock_image_unlocked_groups);
    if (o->lock_text) clip_lock(clip, TEXT_TOWER, (int)o->lock_text_unlocked_layers);
    if (o->lock_logit_scale) clip_lock(clip, NO_TOWER, 0);
    if ((options_was_set(o, lr_image) || options_was_set(o, lr_text)) && !(o->lr > 0))
        die(EXIT_USAGE, "--lr-image, --lr-text: give --lr, too; the schedule of the run follows it");
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
