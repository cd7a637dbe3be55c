// The table of options: group, kind, field, name, default, range and help of each one. options.h walks it to
// parse, check and print. Names and meaning are open_clip's wherever open_clip has the option.
//
// A program with options of its own defines, before it includes this file:
//     PROGRAM_OPTIONS(X)  its own rows (group PROGRAM); they become fields of the same struct
//     PROGRAM_GROUPS      the groups that it offers: (GROUP_BIT(PROGRAM) | GROUP_BIT(DATA)); default: all
//     PROGRAM_ALSO        single options that it offers from other groups: a|b|c, where * and ? are wildcards
//     PROGRAM_USAGE       the lines above the options in --help
#ifndef CLIPC_OPTION_TABLE_H
#define CLIPC_OPTION_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    double v[3];
} Triple;

typedef struct {
    double value;
    bool percent; // value is a percentage of a whole; otherwise an absolute count
} Share;

#define RATE_AUTO -1.0 // learning rate: find it by a range test

typedef struct {
    const char **items;
    size_t count, capacity;
} TextList;

// kind, type of the field, how --help writes the value (NULL: as the range column of the option's row)
// clang-format off
#define OPTION_KINDS(K) \
    K(FLAG, bool, "") \
    K(INT, int64_t, "N")             /* whole number in the range, 25e6 is one too; unset: -1 */ \
    K(REAL, double, "X")             /* number in the range; unset: NaN */ \
    K(RATE, double, "X|auto")        /* number in the range, or auto: RATE_AUTO */ \
    K(TRIPLE, Triple, "R G B")       /* three numbers in the range, separated by spaces or commas */ \
    K(SHARE, Share, "N|N%")          /* whole number in the range, or a percentage: 10% */ \
    K(CHOICE, const char *, "WORD")  /* range: the words to choose from; unset: NULL */ \
    K(TEXT, const char *, NULL)      /* unset: NULL */ \
    K(CHARACTER, char, NULL)         /* \t and tab mean a tab; unset: 0 */ \
    K(WORDS, const char *, NULL)     /* all words up to the next --option, joined by spaces; unset: NULL */ \
    K(LIST, TextList, NULL)          /* all words up to the next --option; may be repeated; unset: empty */

// group, kind, field, option, default, range, and on lines of its own the help.
// A default in parentheses describes in words what happens when the option is not set.
// Ranges are written as intervals: [ and ] include the bound, ( and ) exclude it.
#define TRAIN_OPTIONS(X) \
    X(MODEL, TEXT, pretrained, "pretrained", "(none)", "FILE|TAG", \
        "weights to start from: a packed .bin file or, with --model, a tag such as laion2b_s34b_b79k") \
    X(MODEL, TEXT, model, "model", "(from the weight file)", "NAME|JSON", \
        "architecture, such as ViT-B-32 or a config.json; without --pretrained, training starts from " \
        "random weights") \
    X(MODEL, TEXT, pretrained_image, "pretrained-image", "(none)", "FILE", \
        "load the image tower from this file (a CLIP or an ImageNet ViT), start the rest at random (LiT)") \
    X(MODEL, TEXT, pretrained_text, "pretrained-text", "(none)", "FILE", \
        "load the text tower from this file, start the rest at random") \
    X(MODEL, INT, force_image_size, "force-image-size", "(from the weight file)", "[1,4096]", \
        "side of the model's input images in pixels; position embeddings are interpolated") \
    X(MODEL, INT, force_context_length, "force-context-length", "(from the weight file)", "[2,65536]", \
        "tokens per caption; position embeddings are interpolated") \
    X(MODEL, REAL, force_patch_dropout, "force-patch-dropout", "0", "[0,1)", \
        "fraction of the patches dropped in training, drawn anew for each image") \
    X(MODEL, TEXT, resume, "resume", "(none)", "FILE|latest", \
        "continue a run from this checkpoint (its .bin or its .state file), or from the run's latest " \
        "complete one; options that run a command or name a file to write are not taken from it") \
    X(MODEL, FLAG, resume_override, "resume-override", "", "", \
        "continue even if an option that changes the result differs from the run's settings") \
    X(MODEL, TEXT, cache_dir, "cache-dir", "weights", "DIR", \
        "folder in which a tag's weights are looked up, as MODEL-TAG.bin") \
    X(MODEL, FLAG, force_quick_gelu, "force-quick-gelu", "", "", \
        "compute with QuickGELU, whatever the weight file says") \
    X(MODEL, TRIPLE, image_mean, "image-mean", "(from the weight file)", "[-10,10]", \
        "mean of the red, green and blue channels, of pixels scaled to 0...1") \
    X(MODEL, TRIPLE, image_std, "image-std", "(from the weight file)", "[1e-4,10]", \
        "standard deviation of the red, green and blue channels") \
    X(MODEL, CHOICE, image_interpolation, "image-interpolation", "(from the weight file)", \
        "bicubic bilinear", \
        "interpolation with which images are resized") \
    X(MODEL, CHOICE, image_resize_mode, "image-resize-mode", "(from the weight file)", \
        "shortest squash longest", \
        "shortest: resize the shortest side, crop the centre; squash: resize both sides; longest: resize " \
        "the longest side, pad") \
    X(DATA, TEXT, train_data, "train-data", "(none)", "PATH", \
        "training pairs: a CSV or JSONL table, a folder of images with .txt captions, WebDataset tars " \
        "({00..09} and * expand, a folder of them, http:// or s3:// URLs, pipe:COMMAND), or synthetic; " \
        "sources are joined by ::") \
    X(DATA, LIST, val_data, "val-data", "(none)", "[NAME=]PATH", \
        "pairs for validation loss and retrieval, in the forms of --train-data; may be repeated; the " \
        "captions of an image all count as right, see doc/evaluation.md") \
    X(DATA, REAL, val_split, "val-split", "0", "[0,1)", \
        "fraction of the training samples kept for validation") \
    X(DATA, CHOICE, dataset_type, "dataset-type", "auto", "auto csv webdataset folder synthetic", \
        "format of --train-data and --val-data; auto: detected") \
    X(DATA, TEXT, csv_img_key, "csv-img-key", "filepath", "NAME", \
        "CSV column of the image's path") \
    X(DATA, TEXT, csv_caption_key, "csv-caption-key", "title", "NAME", \
        "CSV column of the caption") \
    X(DATA, TEXT, csv_label_key, "csv-label-key", "label", "NAME", \
        "CSV column of the class, an index or a class name") \
    X(DATA, CHARACTER, csv_separator, "csv-separator", "(detected)", "CHAR", \
        "separator of CSV columns; \\t for a tab") \
    X(DATA, TEXT, image_key, "image-key", "jpg;png;jpeg;webp;jpe;jfif;gif;bmp;tif;tiff;avif;heic;heif;jp2", \
        "EXT;EXT", \
        "extensions of the tar members that are images, the best first") \
    X(DATA, TEXT, text_key, "text-key", "txt", "EXT;EXT", \
        "extensions of the tar members, or of the files in a folder, that are captions") \
    X(DATA, FLAG, caption_lines, "caption-lines", "", "", \
        "a caption is one line of its text, drawn at random in each epoch; evaluation takes the first line") \
    X(DATA, TEXT, json_text_key, "json-text-key", "(none)", "KEY;KEY", \
        "read the caption from this field of a sample's .json member; the first one that is not empty is " \
        "used") \
    X(DATA, FLAG, skip_missing_shards, "skip-missing-shards", "", "", \
        "leave out tar shards that are not there, and say how many; without it they end the program") \
    X(DATA, INT, train_num_samples, "train-num-samples", "(counted)", "[1,1e15]", \
        "number of training samples; saves counting them") \
    X(DATA, INT, val_num_samples, "val-num-samples", "(counted)", "[1,1e15]", \
        "number of validation samples; saves counting them") \
    X(DATA, TEXT, train_data_upsampling_factors, "train-data-upsampling-factors", "(1 each)", "A::B", \
        "how many times per epoch each sample of a source is used, one factor for each source of " \
        "--train-data, e.g. 1::2.5") \
    X(DATA, FLAG, dataset_resampled, "dataset-resampled", "", "", \
        "draw the --train-num-samples pairs of an epoch with replacement; upsampling factors become " \
        "weights") \
    X(DATA, TEXT, train_templates, "train-templates", "(none)", "FILE", \
        "train on class folders or labels with prompts as captions (FLYP); each time a prompt is drawn " \
        "from this file and {} in it becomes the class name") \
    X(DATA, INT, max_image_pixels, "max-image-pixels", "25e6", "[0,1e12]", \
        "skip images with more pixels than this; 0: no limit") \
    X(DATA, FLAG, exif_rotate, "exif-rotate", "", "", \
        "rotate images to the orientation in their EXIF tag (open_clip does not)") \
    X(DATA, INT, workers, "workers", "(cores)", "[1,256]", \
        "threads that decode images ahead of the training step") \
    X(DATA, TEXT, cache_images, "cache-images", "(none)", "FILE", \
        "cache decoded images in this file, to which runs add what it lacks: the model's input images " \
        "with --aug-cfg none, else the whole images") \
    X(DATA, FLAG, no_shuffle, "no-shuffle", "", "", \
        "use the samples in the order of the data") \
    X(DATA, WORDS, aug_cfg, "aug-cfg", "(scale=0.9,1.0)", "KEY=VALUE...", \
        "augmentation: scale=LOW,HIGH ratio=LOW,HIGH color_jitter=... gray_scale_prob=P; none: the " \
        "transform used in evaluation") \
    X(DATA, INT, seed, "seed", "0", "[0,9e18]", \
        "random seed; the same seed gives the same bits") \
    X(TRAINING, CHOICE, preset, "preset", "(none)", "quick production conservative", \
        "settings for one kind of run, see --help strategies; options given explicitly take precedence") \
    X(TRAINING, INT, batch_size, "batch-size", "64", "[1,1e6]", \
        "pairs in a micro-batch") \
    X(TRAINING, INT, epochs, "epochs", "(10, or 32 from random weights)", "[1,1e6]", \
        "passes over the training data") \
    X(TRAINING, INT, steps, "steps", "(from --epochs)", "[1,1e12]", \
        "length of the run and of its schedule, instead of --epochs") \
    X(TRAINING, INT, accum_freq, "accum-freq", "1", "[1,1e6]", \
        "micro-batches per step; the loss covers all of their pairs, in the memory of one micro-batch") \
    X(TRAINING, CHOICE, precision, "precision", "auto", "auto fp32 amp_bf16 tf32", \
        "number format in which matrix products are computed; auto: the faster of fp32 and " \
        "amp_bf16 on this processor, by a timing that is kept until it starts again") \
    X(TRAINING, RATE, lr, "lr", "(1e-5, or 5e-4 from random weights)", "[0,inf)", \
        "peak learning rate; auto: found by a range test of 100 steps before the run") \
    X(TRAINING, REAL, wd, "wd", "0.2", "[0,inf)", \
        "weight decay; not applied to gains, biases, class and position embeddings and the logit scale") \
    X(TRAINING, REAL, beta1, "beta1", "0.9", "[0,1)", \
        "AdamW: decay rate of the running mean of the gradients") \
    X(TRAINING, REAL, beta2, "beta2", "0.98", "[0,1)", \
        "AdamW: decay rate of the running mean of the squared gradients") \
    X(TRAINING, REAL, eps, "eps", "1e-6", "(0,inf)", \
        "AdamW: added to the square root of the second moment") \
    X(TRAINING, REAL, grad_clip_norm, "grad-clip-norm", "0", "[0,inf)", \
        "clip the L2 norm of all gradients together to this value; 0: no clipping") \
    X(TRAINING, REAL, lr_image, "lr-image", "(--lr)", "[0,inf)", \
        "peak learning rate of the image tower") \
    X(TRAINING, REAL, lr_text, "lr-text", "(--lr)", "[0,inf)", \
        "peak learning rate of the text tower") \
    X(TRAINING, REAL, image_layer_decay, "image-layer-decay", "1", "(0,1]", \
        "layer-wise rates of the image tower: each group's rate is this times that of the group above it; " \
        "the projection has the full rate") \
    X(TRAINING, REAL, text_layer_decay, "text-layer-decay", "1", "(0,1]", \
        "the same for the text tower") \
    X(TRAINING, LIST, wd_exclude, "wd-exclude", "(none)", "PATTERN...", \
        "no weight decay for tensors whose names match, e.g. '*.proj'; may be repeated") \
    X(TRAINING, REAL, ema_decay, "ema-decay", "0", "[0,1)", \
        "also keep an exponential moving average of the weights, which is evaluated and saved as well, " \
        "e.g. 0.999; 0: off") \
    X(TRAINING, FLAG, grad_checkpointing, "grad-checkpointing", "", "", \
        "recompute activations in the backward pass: less memory, the same bits, slower") \
    X(TRAINING, CHOICE, positives, "positives", "diagonal", "diagonal soft mask", \
        "treat the other pairs of a step that have the same key as negatives, like open_clip (diagonal), " \
        "as positives (soft), or leave them out of the loss (mask)") \
    X(TRAINING, TEXT, positives_key, "positives-key", "(caption)", "KEY|COLUMN", \
        "what counts as the same key: equal caption, image (its path), cls (class), or text in this CSV " \
        "column; in retrieval cls or a column say which images and captions are right for each other") \
    X(TRAINING, FLAG, distinct_batches, "distinct-batches", "", "", \
        "never put two pairs with the same key into one step") \
    X(LOCKING, FLAG, lock_image, "lock-image", "", "", \
        "freeze the image tower") \
    X(LOCKING, INT, lock_image_unlocked_groups, "lock-image-unlocked-groups", "0", "[0,1e3]", \
        "with --lock-image, still train the last N groups: first the projection, then the blocks from the " \
        "last one down, then the embeddings") \
    X(LOCKING, FLAG, lock_text, "lock-text", "", "", \
        "freeze the text tower") \
    X(LOCKING, INT, lock_text_unlocked_layers, "lock-text-unlocked-layers", "0", "[0,1e3]", \
        "with --lock-text, still train the last N groups") \
    X(LOCKING, FLAG, lock_logit_scale, "lock-logit-scale", "", "", \
        "freeze the logit scale") \
    X(LOCKING, TEXT, feature_cache, "feature-cache", "(in memory)", "FILE", \
        "file in which the features of a locked tower are kept for later runs") \
    X(SCHEDULE, CHOICE, lr_scheduler, "lr-scheduler", "cosine", \
        "cosine linear stlr exponential step cosine-restarts one-cycle const const-cooldown", \
        "shape of the learning rate after the warmup; stlr and one-cycle have a ramp of their own") \
    X(SCHEDULE, SHARE, warmup, "warmup", "10%", "[0,1e12]", \
        "linear warmup: number of steps, or percentage of the run, rounded down") \
    X(SCHEDULE, REAL, min_lr_ratio, "min-lr-ratio", "0", "[0,1]", \
        "lowest rate of the schedule, as a fraction of --lr") \
    X(SCHEDULE, REAL, cut_frac, "cut-frac", "0.1", "[0,1]", \
        "stlr: fraction of the run in which the rate rises") \
    X(SCHEDULE, REAL, stlr_ratio, "stlr-ratio", "32", "[1,1e9]", \
        "stlr: ratio of the peak rate to the lowest rate") \
    X(SCHEDULE, REAL, gamma, "gamma", "(exponential: 0.95, step: 0.1)", "(0,1]", \
        "exponential, step: factor on the rate for every --step-size steps") \
    X(SCHEDULE, INT, step_size, "step-size", "(exponential: one epoch, step: a third of the run)", \
        "[1,1e12]", \
        "exponential, step: number of steps in which the rate falls by the factor --gamma") \
    X(SCHEDULE, INT, t_0, "t-0", "(a quarter of the run)", "[1,1e12]", \
        "cosine-restarts: number of steps until the first restart") \
    X(SCHEDULE, INT, t_mult, "t-mult", "2", "[1,1e6]", \
        "cosine-restarts: each period is this many times as long as the one before") \
    X(SCHEDULE, REAL, pct_start, "pct-start", "0.3", "[0,1]", \
        "one-cycle: fraction of the run in which the rate rises") \
    X(SCHEDULE, REAL, div_factor, "div-factor", "25", "[1,1e12]", \
        "one-cycle: ratio of the peak rate to the first rate") \
    X(SCHEDULE, REAL, final_div_factor, "final-div-factor", "1e4", "[1,1e12]", \
        "one-cycle: ratio of the first rate to the last rate") \
    X(SCHEDULE, CHOICE, anneal, "anneal", "cosine", "cosine linear", \
        "one-cycle: rise and fall along half a cosine or a straight line") \
    X(SCHEDULE, FLAG, three_phase, "three-phase", "", "", \
        "one-cycle: fall to the first rate as fast as it rose, then on to the last rate") \
    X(SCHEDULE, FLAG, cycle_momentum, "cycle-momentum", "", "", \
        "one-cycle: instead of --beta1, move beta1 from 0.95 to 0.85 and back, opposite to the rate") \
    X(SCHEDULE, INT, epochs_cooldown, "epochs-cooldown", "(none)", "[1,1e6]", \
        "const-cooldown: number of epochs at the end in which the rate falls") \
    X(SCHEDULE, REAL, lr_cooldown_end, "lr-cooldown-end", "0", "[0,inf)", \
        "const-cooldown: rate at the end of the cooldown") \
    X(SCHEDULE, REAL, lr_cooldown_power, "lr-cooldown-power", "1", "(0,100]", \
        "const-cooldown: exponent of the fall; 1: a straight line") \
    X(SCHEDULE, TEXT, print_schedule, "print-schedule", "(none)", "FILE.svg", \
        "draw the learning rate over the run, then exit; needs --steps or --train-data") \
    X(EVALUATION, LIST, zeroshot_data, "zeroshot-data", "(none)", "[NAME=]PATH", \
        "labelled images for zero-shot evaluation: a folder of class folders, a CSV, or tars with .cls " \
        "members; may be repeated") \
    X(EVALUATION, TEXT, classnames, "classnames", "(folder names)", "FILE", \
        "class names, one per line or as a JSON list; line i names class i, see doc/evaluation.md") \
    X(EVALUATION, TEXT, templates, "templates", "(a photo of a {}.)", "FILE", \
        "prompts, one per line or as a list in JSON or Python, with {} for the class name") \
    X(EVALUATION, INT, zeroshot_frequency, "zeroshot-frequency", "1", "[0,1e6]", \
        "zero-shot evaluation every N epochs; 0: never") \
    X(EVALUATION, INT, val_frequency, "val-frequency", "1", "[0,1e6]", \
        "validation every N epochs; 0: never") \
    X(EVALUATION, SHARE, eval_steps, "eval-steps", "0", "[0,1e12]", \
        "also evaluate every N steps, or every N% of an epoch (50%: twice per epoch); 0: only between " \
        "epochs") \
    X(EVALUATION, INT, early_stop, "early-stop", "0", "[0,1e6]", \
        "end the run after N evaluations without a lower val_loss; 0: never") \
    X(EVALUATION, TEXT, best_metric, "best-metric", "(zeroshot_top1 of the first set, else val_loss)", \
        "NAME|none", \
        "metric, as named in metrics.jsonl, by which checkpoints/best.bin is chosen") \
    X(EVALUATION, INT, val_retrieval_chunk_size, "val-retrieval-chunk-size", "4096", "[0,1e9]", \
        "rows of the retrieval matrix held in memory at a time; 0: all") \
    X(EVALUATION, FLAG, eval_only, "eval-only", "", "", \
        "evaluate the model, then exit") \
    X(EVALUATION, FLAG, check_data, "check-data", "", "", \
        "read everything that the run would, decode and tokenize it, print what is used and what is passed " \
        "over, and exit: 0 all is used, 3 something is passed over, 2 nothing can be used") \
    X(EVALUATION, TEXT, save_features, "save-features", "(none)", "FILE.safetensors", \
        "write the image and text features of the evaluated data to this file") \
    X(EVALUATION, LIST, classify, "classify", "(none)", "IMAGE...", \
        "print the most probable classes of these images, out of --classnames, then exit") \
    X(OUTPUT, TEXT, logs, "logs", "logs", "DIR", \
        "folder in which run folders are created") \
    X(OUTPUT, TEXT, name, "name", "(date_time-model-lr-batch)", "NAME", \
        "name of the run and of its folder") \
    X(OUTPUT, INT, save_frequency, "save-frequency", "1", "[0,1e6]", \
        "save a checkpoint every N epochs and at the end; 0: only at the end") \
    X(OUTPUT, SHARE, save_steps, "save-steps", "0", "[0,1e12]", \
        "also save a checkpoint every N steps, or every N% of an epoch; 0: only between epochs") \
    X(OUTPUT, FLAG, save_most_recent, "save-most-recent", "", "", \
        "also keep the newest checkpoint under the name latest") \
    X(OUTPUT, INT, keep_checkpoints, "keep-checkpoints", "0", "[0,1e6]", \
        "keep only the N newest checkpoints, besides latest and best; 0: keep all") \
    X(OUTPUT, INT, keep_states, "keep-states", "2", "[0,1e6]", \
        "keep the training state of only the N newest of them, besides latest and best: from the others " \
        "nothing resumes, but their weights stay; 0: keep all") \
    X(OUTPUT, FLAG, delete_previous_checkpoint, "delete-previous-checkpoint", "", "", \
        "keep only the newest checkpoint") \
    X(OUTPUT, INT, log_every_n_steps, "log-every-n-steps", "1", "[1,1e9]", \
        "write a log line and a record of metrics every N steps") \
    X(OUTPUT, FLAG, lr_measured, "lr-measured", "", "", \
        "lr_find measured --lr for this run: no note that it is not one of the usual rates") \
    X(OUTPUT, TEXT, report_to, "report-to", "(none)", "tensorboard,wandb", \
        "also write TensorBoard event files, or report to Weights & Biases with its wandb package, or both") \
    X(OUTPUT, TEXT, wandb_project_name, "wandb-project-name", "clip.c", "NAME", \
        "wandb: name of the project") \
    X(OUTPUT, TEXT, wandb_notes, "wandb-notes", "(none)", "TEXT", \
        "wandb: notes about the run") \
    X(OUTPUT, FLAG, schema, "schema", "", "", \
        "print the tables of configuration fields, tensors and models as JSON (data/schema.json), then exit")

// Options that do more than read and compute. A resumed run takes them from its own command line alone, never
// from the settings in a checkpoint, which may be a stranger's: see clipc/train/settings.h and doc/trust.md.
// names, values that do not act (NULL: those that are not a command), what the others do
#define ACTING_OPTIONS(A) \
    A("train-data|val-data|zeroshot-data", NULL, "runs a command (pipe: or a download)") \
    A("save-features|feature-cache|cache-images|print-schedule", "", "writes a file") \
    A("report-to", "tensorboard", "starts a program") \
    A("wandb-project-name", "clip.c", "says where a report goes") \
    A("logs|name", "", "says where the run writes")

#define OPTION_GROUPS(G) \
    G(PROGRAM, "This program") \
    G(MODEL, "Model") \
    G(DATA, "Data") \
    G(TRAINING, "Training") \
    G(LOCKING, "Locking") \
    G(SCHEDULE, "Schedule") \
    G(EVALUATION, "Evaluation") \
    G(OUTPUT, "Output")

#ifndef PROGRAM_OPTIONS
#define PROGRAM_OPTIONS(X)
#endif
#ifndef PROGRAM_GROUPS
#define PROGRAM_GROUPS (~0u)
#endif
#ifndef PROGRAM_ALSO
#define PROGRAM_ALSO ""
#endif
#ifndef PROGRAM_USAGE
#define PROGRAM_USAGE \
    "Fine-tunes a CLIP model on images and their captions.\n\n" \
    "  fine-tune      train_clip --pretrained ViT-B-32-openai.bin --train-data pairs.csv\n" \
    "  and evaluate   ... --zeroshot-data test_folder --classnames names.txt --val-split 0.1\n" \
    "  from scratch   train_clip --model ViT-S-32 --train-data 'shards/{00000..00099}.tar'\n" \
    "  resume         train_clip --resume latest --name NAME, with the other options as before\n" \
    "  classify       train_clip --pretrained FILE --classnames names.txt --classify a.jpg b.jpg\n"
#endif
#define ALL_OPTIONS(X) PROGRAM_OPTIONS(X) TRAIN_OPTIONS(X)

// Options of open_clip, and some of other programs, that have no row in the table. IGNORED_FLAG: has no
// effect here, so a warning is enough; IGNORED_VALUE: the same, and takes a value. REFUSED: would change the
// result, so it is an error. What other programs call a row of the table is in SYNONYMS.
// verdict, names ("name value" for one value of an option, "name " for it without one; | separates several,
// * matches anything), why
#define GPU_NAMES "gpu|gpus|gpu-id|gpu-ids|cuda|use-cuda|num-gpus|n-gpu|devices|accelerator"
#ifdef __CUDACC__
#define DEVICE_OPTIONS(F) \
    F(REFUSED, "device cpu|no-cuda", "this program computes on the GPU; use train_clip for the CPU") \
    F(IGNORED_VALUE, "device", "this program computes on the GPU that CUDA_VISIBLE_DEVICES selects") \
    F(REFUSED, GPU_NAMES, \
        "this program computes on the GPU that CUDA_VISIBLE_DEVICES selects; leave the option out")
#else
#define DEVICE_OPTIONS(F) \
    F(IGNORED_VALUE, "device cpu", "this program computes on the CPU") \
    F(REFUSED, "device|" GPU_NAMES, \
        "this program computes on the CPU; for a GPU use train_clipcu, for which CUDA_VISIBLE_DEVICES=N " \
        "selects one")
#endif
#define FOREIGN_OPTIONS(F) \
    DEVICE_OPTIONS(F) \
    F(IGNORED_FLAG, "local-loss|gather-with-grad", "loss and gradient always cover the whole batch") \
    F(IGNORED_FLAG, "lock-text-freeze-layer-norm", "--lock-text freezes LayerNorm as well") \
    F(IGNORED_FLAG, "lock-image-freeze-bn-stats|use-bn-sync", "the models have no batch norm") \
    F(IGNORED_FLAG, "torchcompile|torchscript|trace|ddp-static-graph|no-set-device-rank", \
        "PyTorch is not used") \
    F(IGNORED_VALUE, "torchcompile-*|dist-url|dist-backend", "PyTorch is not used") \
    F(IGNORED_FLAG, "log-local|debug|copy-codebase", "a run writes one log and copies no code") \
    F(IGNORED_VALUE, "opt adamw", "the optimizer is AdamW") \
    F(REFUSED, "opt|opt-*|optim|optimizer|momentum", \
        "the optimizer is AdamW, set by --lr --wd --beta1 --beta2 --eps; leave the option out") \
    F(REFUSED, "precision fp16|precision pure_*", "is not offered; use --precision amp_bf16 or auto") \
    F(REFUSED, "logs none|logs None", "a run always has a folder; leave the option out, or name one") \
    F(REFUSED, "report-to *trackio*", "is not offered; give tensorboard, wandb, or tensorboard,wandb") \
    F(REFUSED, "pretrained-image ", \
        "here takes the weights of an image tower; make them with: python3 dev/convert.py " \
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k -o FILE.bin") \
    F(REFUSED, "*audio*|*naflex*", "only text and images of one size are supported") \
    F(REFUSED, "skip-scheduler", "use --lr-scheduler const") \
    F(REFUSED, "siglip|coca-*|loss-dist-impl|loss|label-smoothing*|mixup*|cutmix*", \
        "CLIP's softmax loss is the only one; leave the option out") \
    F(REFUSED, "distill-*", "distillation is not supported; leave the option out") \
    F(REFUSED, "lora*|use-lora|peft*|adapter*", \
        "there are no adapters; --lock-image and --lock-text train parts of the towers") \
    F(REFUSED, "temperature|logit-scale|init-logit-scale", \
        "the logit scale is that of the weights, and trained; --lock-logit-scale keeps it") \
    F(REFUSED, "dropout|drop|drop-rate|drop-path|attn-dropout", \
        "the models have none; --force-patch-dropout drops patches") \
    F(REFUSED, "*bucket*|text-pad-multiple", "captions are packed without padding; leave the option out") \
    F(REFUSED, "fsdp*|deepspeed*|strategy", "the model is not split over devices; leave the option out") \
    F(REFUSED, "world-size|nproc*|nnodes|num-nodes|num-processes|local-rank|horovod|multigpu|distributed", \
        "no option starts processes; leave it out") \
    F(REFUSED, "remote-sync*", "not supported; copy the run folder with a tool of your choice") \
    F(REFUSED, "log-metric-every-n-steps", "use --log-every-n-steps") \
    F(REFUSED, "train-loss-ema-samples", "curves.svg shows a smoothed loss; leave the option out") \
    F(REFUSED, "val-retrieval-precision|use-bnb-linear", \
        "weights and scores are fp32; leave the option out") \
    F(REFUSED, "json-text-key-probs", \
        "the first key of --json-text-key that is not empty is used; leave the option out") \
    F(REFUSED, "force-custom-text|text-pooler-own-group", \
        "the text tower is always CLIP's own; leave the option out") \
    F(REFUSED, "imagenet-v*", "not supported yet; use --zeroshot-data DIR --templates FILE (a folder of " \
        "WordNet ids takes ImageNet's class names)") \
    F(REFUSED, "do-train", "giving --train-data means training; leave the option out") \
    F(REFUSED, "overwrite-output-dir", \
        "no run writes over another; leave the option out, and give another --name")

// option, its values that are taken as another one, that one, what it means
#define VALUE_SYNONYMS(V)                               \
    V("precision", "amp|amp_bfloat16|bf16", "amp_bf16", \
        "weights, sums and the optimizer are fp32, matrix products bf16")

// names that other programs have, our option, what is to be said of its value
#define SYNONYMS(S) \
    S("learning-rate|base-lr|init-lr|initial-lr|peak-lr|max-lr|max-learning-rate|blr", "lr", "") \
    S("weight-decay", "wd", "") \
    S("adam-beta1", "beta1", "") \
    S("adam-beta2", "beta2", "") \
    S("betas|adam-betas", "beta1", " and --beta2") \
    S("adam-epsilon|adam-eps|epsilon", "eps", "") \
    S("max-grad-norm|clip-grad|clip-grad-norm|grad-clip|gradient-clip-val|gradient-clipping", \
        "grad-clip-norm", "") \
    S("max-steps|num-steps|total-steps|*train-steps|num-iterations|max-iters|iterations", "steps", "") \
    S("*num-epochs|max-epochs|n-epochs|total-epochs|num-train-epochs", "epochs", "") \
    S("*train-batch-size|per-device-*batch-size|per-gpu-*batch-size|bs", "batch-size", "") \
    S("gradient-accumulation*|grad-accum*|accumulate-grad-batches|accum-steps|accumulation-steps", \
        "accum-freq", "") \
    S("lr-scheduler-type|scheduler|sched|lr-schedule|lr-decay-style", "lr-scheduler", "") \
    S("*warmup-steps|warmup-iters|warmup-iterations", "warmup", "") \
    S("warmup-ratio|warmup-epochs|warmup-fraction|warmup-proportion", \
        "warmup", " N, in steps, or N%, of the run") \
    S("min-lr|lr-min|eta-min|end-lr|final-lr", "min-lr-ratio", " X, as a fraction of --lr") \
    S("decay-rate|lr-gamma", "gamma", "") \
    S("decay-epochs|decay-steps|lr-step-size", "step-size", " N, in steps") \
    S("model-ema|model-ema-decay|ema|use-ema", "ema-decay", " X, such as 0.999") \
    S("layer-decay|llrd|layerwise-lr-decay", "image-layer-decay", " and --text-layer-decay") \
    S("visual-layer-decay", "image-layer-decay", "") \
    S("gradient-checkpointing|activation-checkpointing", "grad-checkpointing", "") \
    S("amp|use-amp|bf16|fp16|half|mixed-precision|autocast|dtype|torch-dtype", \
        "precision", " amp_bf16, or auto") \
    S("random-seed|manual-seed", "seed", "") \
    S("*num-workers|num-threads|threads|j", "workers", "") \
    S("train-file|train-dir|train-path|train-csv|dataset|data|data-dir|data-path|dataset-name|dataset-dir|" \
      "image-dir|image-folder|images", "train-data", "") \
    S("validation-file|validation-data|val-file|val-dir|val-path|eval-data|eval-file|valid-data|test-data", \
        "val-data", "") \
    S("validation-split|validation-split-percentage|train-val-split|test-size", "val-split", \
        " X, a fraction such as 0.1") \
    S("image-column|image-col|img-key", "csv-img-key", "") \
    S("caption-column|caption-col|caption-key|text-column", "csv-caption-key", "") \
    S("label-column|label-col|label-key", "csv-label-key", "") \
    S("separator|sep|delimiter", "csv-separator", "") \
    S("color-jitter|random-resized-crop|crop-scale", "aug-cfg", " scale=LOW,HIGH color_jitter=...") \
    S("model-name|arch|architecture|backbone", "model", "") \
    S("model-name-or-path|pretrained-model|pretrained-model-name-or-path|checkpoint|ckpt|weights|init-from|" \
      "initial-checkpoint|finetune", "pretrained", " FILE.bin") \
    S("resume-from|resume-from-checkpoint|ckpt-path|load-checkpoint", "resume", "") \
    S("img-size|input-size|image-size|resolution", "force-image-size", "") \
    S("context-length|max-length|max-seq-length|max-seq-len", "force-context-length", "") \
    S("patch-dropout|patch-drop-rate", "force-patch-dropout", "") \
    S("freeze-image*|freeze-vision*|freeze-visual*|freeze-backbone|lock-vision|lock-visual", \
        "lock-image", "") \
    S("freeze-text*", "lock-text", "") \
    S("freeze-logit-scale|freeze-temperature", "lock-logit-scale", "") \
    S("mean", "image-mean", "") \
    S("std", "image-std", "") \
    S("interpolation|train-interpolation", "image-interpolation", "") \
    S("output-dir|out-dir|output|out|save-dir|save-path|log-dir|logdir|logging-dir|checkpoint-dir|work-dir|" \
      "default-root-dir", "logs", " DIR; the run's folder in it is --name") \
    S("run-name|experiment|experiment-name|exp-name|exp", "name", "") \
    S("logging-steps|log-interval|log-every|log-every-n|log-freq|print-freq", "log-every-n-steps", "") \
    S("save-interval|save-every|save-freq|checkpoint-interval", \
        "save-frequency", " N, in epochs, or --save-steps N") \
    S("save-total-limit|checkpoint-hist|max-checkpoints", "keep-checkpoints", "") \
    S("eval-interval|eval-every|evaluation-steps|val-check-interval", "eval-steps", "") \
    S("eval-frequency|eval-freq|val-interval|check-val-every-n-epoch", "val-frequency", "") \
    S("early-stopping|early-stopping-patience|patience", "early-stop", " N, in evaluations") \
    S("metric-for-best-model|eval-metric|monitor", "best-metric", "") \
    S("eval|evaluate|test-only|do-eval|validate-only", "eval-only", "") \
    S("zeroshot|zeroshot-dataset|zero-shot-data|test-dir", "zeroshot-data", "") \
    S("classes|class-names|class-file|labels|label-names", "classnames", " FILE") \
    S("prompts|prompt|prompt-templates|template", "templates", " FILE") \
    S("predict|predict-images", "classify", " IMAGE...") \
    S("wandb|use-wandb|log-wandb|tensorboard|use-tensorboard|logger", \
        "report-to", " tensorboard, wandb or both") \
    S("wandb-project|project|project-name", "wandb-project-name", "")

// clang-format on
#endif
