// The table of options: of every one its group, kind, field, name, default, range and help. Names and meaning
// are open_clip's wherever open_clip has the option. options.h walks it.
//
// A program with options of its own defines, before it includes this file,
//     PROGRAM_OPTIONS(X)  its rows (group PROGRAM), as fields of the same struct
//     PROGRAM_GROUPS      the groups it offers, e.g. (GROUP_BIT(PROGRAM) | GROUP_BIT(DATA)); without it: all
//     PROGRAM_ALSO        single options of other groups that it offers, a|b|c, each a pattern as for file
//         names
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
    bool percent; // value is in percent of the whole, else an absolute count
} Share;

#define RATE_AUTO -1.0 // a learning rate that the range test is to find

typedef struct {
    const char **items;
    size_t count, capacity;
} TextList;

// kind, type of the field, how --help writes the value (NULL: as the column "range" says)
// clang-format off
#define OPTION_KINDS(K) \
    K(FLAG, bool, "") \
    K(INT, int64_t, "N")             /* whole number in the range, also as 25e6; unset: -1 */ \
    K(REAL, double, "X")             /* number in the range; unset: NaN */ \
    K(RATE, double, "X|auto")        /* the same, or the word auto: RATE_AUTO */ \
    K(TRIPLE, Triple, "R G B")       /* three numbers in the range, separated by blanks or commas */ \
    K(SHARE, Share, "N|N%")          /* whole number in the range, or a share of the whole: 10% */ \
    K(CHOICE, const char *, "WORD")  /* range: the words to choose from; unset: NULL */ \
    K(TEXT, const char *, NULL)      /* unset: NULL */ \
    K(CHARACTER, char, NULL)         /* \t and tab are the tabulator; unset: 0 */ \
    K(WORDS, const char *, NULL)     /* all words up to the next --option, joined by blanks; unset: NULL */ \
    K(LIST, TextList, NULL)          /* all words up to the next --option, may be repeated; unset: none */

// range: [ and ] include the bound, ( and ) exclude it. A default in parentheses describes what happens when
// the option is unset. group, kind, field, option, default, range, help
#define TRAIN_OPTIONS(X) \
    X(MODEL, TEXT, pretrained, "pretrained", "(none)", "FILE|TAG", "weights to start from: a packed .bin, or with --model a tag, e.g. laion2b_s34b_b79k") \
    X(MODEL, TEXT, model, "model", "(as the weights say)", "NAME|JSON", \
        "architecture, e.g. ViT-B-32 or a config.json; without --pretrained it starts from random weights") \
    X(MODEL, TEXT, pretrained_image, "pretrained-image", "(none)", "FILE", "take the image tower from this file (a CLIP or an ImageNet ViT); the rest is random (LiT)") \
    X(MODEL, TEXT, pretrained_text, "pretrained-text", "(none)", "FILE", "take the text tower from this file; the rest is random") \
    X(MODEL, INT, force_image_size, "force-image-size", "(as the weights say)", "[1,4096]", "pixels of a side; the positions are interpolated") \
    X(MODEL, INT, force_context_length, "force-context-length", "(as the weights say)", "[2,65536]", "tokens of a caption; the positions are interpolated") \
    X(MODEL, REAL, force_patch_dropout, "force-patch-dropout", "0", "[0,1)", "share of the patches left out in training, drawn anew for each picture") \
    X(MODEL, TEXT, resume, "resume", "(none)", "FILE|latest", "go on with a run: either file of a checkpoint's pair, or the run's last whole pair") \
    X(MODEL, FLAG, resume_override, "resume-override", "", "", "go on even where an option that changes the result differs from the run's") \
    X(MODEL, TEXT, cache_dir, "cache-dir", "weights", "DIR", "where a tag is looked up, as MODEL-TAG.bin") \
    X(MODEL, FLAG, force_quick_gelu, "force-quick-gelu", "", "", "compute with QuickGELU, whatever the weight file says") \
    X(MODEL, TRIPLE, image_mean, "image-mean", "(as the weights say)", "[-10,10]", "mean of red, green, blue, of pixels scaled to 0 ... 1") \
    X(MODEL, TRIPLE, image_std, "image-std", "(as the weights say)", "[1e-4,10]", "standard deviation of red, green, blue") \
    X(MODEL, CHOICE, image_interpolation, "image-interpolation", "(as the weights say)", "bicubic bilinear", "how pictures are resized") \
    X(MODEL, CHOICE, image_resize_mode, "image-resize-mode", "(as the weights say)", "shortest squash longest", \
        "shortest side and centre crop, both sides, longest side and padding") \
    X(DATA, TEXT, train_data, "train-data", "(none)", "PATH", \
        "a CSV, a folder of pictures and .txt files, WebDataset tars ({00..09}, pipe:COMMAND), or synthetic; several are joined by ::") \
    X(DATA, LIST, val_data, "val-data", "(none)", "[NAME=]PATH", "the same, for validation loss and retrieval; may be repeated") \
    X(DATA, REAL, val_split, "val-split", "0", "[0,1)", "share of the training samples kept for validation") \
    X(DATA, CHOICE, dataset_type, "dataset-type", "auto", "auto csv webdataset folder synthetic", "what --train-data and --val-data are") \
    X(DATA, TEXT, csv_img_key, "csv-img-key", "filepath", "NAME", "CSV column of the picture's path") \
    X(DATA, TEXT, csv_caption_key, "csv-caption-key", "title", "NAME", "CSV column of the caption") \
    X(DATA, TEXT, csv_label_key, "csv-label-key", "label", "NAME", "CSV column of the class, an index or a class name") \
    X(DATA, CHARACTER, csv_separator, "csv-separator", "(found out)", "CHAR", "what separates CSV columns; \\t for the tabulator") \
    X(DATA, TEXT, image_key, "image-key", "jpg;png;jpeg;webp", "EXT;EXT", "tar members that are pictures") \
    X(DATA, TEXT, text_key, "text-key", "txt", "EXT;EXT", "tar members that are captions") \
    X(DATA, TEXT, json_text_key, "json-text-key", "(none)", "KEY;KEY", "caption from this field of a sample's .json member; the first non-empty counts") \
    X(DATA, INT, train_num_samples, "train-num-samples", "(counted)", "[1,1e15]", "number of training samples; saves the count") \
    X(DATA, INT, val_num_samples, "val-num-samples", "(counted)", "[1,1e15]", "number of validation samples") \
    X(DATA, TEXT, train_data_upsampling_factors, "train-data-upsampling-factors", "(1 each)", "A::B", \
        "how often an epoch holds each sample of the sources that --train-data joins by ::, e.g. 1::2.5") \
    X(DATA, FLAG, dataset_resampled, "dataset-resampled", "", "", "draw an epoch's --train-num-samples pairs with replacement, factors as weights") \
    X(DATA, TEXT, train_templates, "train-templates", "(none)", "FILE", \
        "prompts as captions (FLYP): class folders or labels are training data, a prompt with {} for the class is drawn each time") \
    X(DATA, INT, max_image_pixels, "max-image-pixels", "25e6", "[0,1e12]", "skip pictures with more pixels; 0: no limit") \
    X(DATA, FLAG, exif_rotate, "exif-rotate", "", "", "turn pictures upright as their EXIF tag says (open_clip does not)") \
    X(DATA, INT, workers, "workers", "(cores)", "[1,256]", "threads that decode pictures ahead of the step") \
    X(DATA, TEXT, cache_images, "cache-images", "(none)", "FILE", \
        "keep the decoded pictures in this file, made at first; with --aug-cfg none the squares that the model takes, else the whole pictures") \
    X(DATA, FLAG, no_shuffle, "no-shuffle", "", "", "take the samples in the order of the data") \
    X(DATA, WORDS, aug_cfg, "aug-cfg", "(scale=0.9,1.0)", "KEY=VALUE...", \
        "scale=LOW,HIGH ratio=LOW,HIGH color_jitter=... gray_scale_prob=P; none: as in evaluation") \
    X(DATA, INT, seed, "seed", "0", "[0,9e18]", "random seed: same seed, same bits") \
    X(TRAINING, CHOICE, preset, "preset", "(none)", "quick production conservative", "settings for a kind of run, see --help strategies; options given beside it win") \
    X(TRAINING, INT, batch_size, "batch-size", "64", "[1,1e6]", "pairs of a micro-batch") \
    X(TRAINING, INT, epochs, "epochs", "(10, from random weights 32)", "[1,1e6]", "passes over the training data") \
    X(TRAINING, INT, steps, "steps", "(as the epochs say)", "[1,1e12]", "length of the whole run and its schedule, in place of --epochs") \
    X(TRAINING, INT, accum_freq, "accum-freq", "1", "[1,1e6]", "micro-batches a step: the loss over all of their pairs, in the memory of one") \
    X(TRAINING, CHOICE, precision, "precision", "auto", "auto fp32 amp_bf16 tf32", \
        "of the matrix products' operands; auto: amp_bf16 where the processor has instructions for it, else fp32") \
    X(TRAINING, RATE, lr, "lr", "(1e-5, from random weights 5e-4)", "[0,inf)", "peak learning rate; auto: as a range test of 100 steps finds it first") \
    X(TRAINING, REAL, wd, "wd", "0.2", "[0,inf)", "weight decay; not on gains, biases, class and positional embeddings, logit scale") \
    X(TRAINING, REAL, beta1, "beta1", "0.9", "[0,1)", "AdamW: decay of the mean of gradients") \
    X(TRAINING, REAL, beta2, "beta2", "0.98", "[0,1)", "AdamW: decay of the mean of squared gradients") \
    X(TRAINING, REAL, eps, "eps", "1e-6", "(0,inf)", "AdamW: added to the root of the squared mean") \
    X(TRAINING, REAL, grad_clip_norm, "grad-clip-norm", "0", "[0,inf)", "largest L2 norm of all gradients together; 0: no clipping") \
    X(TRAINING, REAL, lr_image, "lr-image", "(--lr)", "[0,inf)", "peak learning rate of the image tower") \
    X(TRAINING, REAL, lr_text, "lr-text", "(--lr)", "[0,inf)", "peak learning rate of the text tower") \
    X(TRAINING, REAL, image_layer_decay, "image-layer-decay", "1", "(0,1]", "each group of the image tower below the projection learns at this times the rate of the one above") \
    X(TRAINING, REAL, text_layer_decay, "text-layer-decay", "1", "(0,1]", "the same for the text tower") \
    X(TRAINING, LIST, wd_exclude, "wd-exclude", "(none)", "PATTERN...", "no weight decay for tensors of these names, e.g. '*.proj'; may be repeated") \
    X(TRAINING, REAL, ema_decay, "ema-decay", "0", "[0,1)", "keep a moving average of the weights, evaluated and saved beside them, e.g. 0.999; 0: none") \
    X(TRAINING, FLAG, grad_checkpointing, "grad-checkpointing", "", "", "keep less for the backward pass and compute it again: less memory, the same bits, slower") \
    X(TRAINING, CHOICE, positives, "positives", "diagonal", "diagonal soft mask", \
        "pairs with equal keys in a step: wrong answers to each other as in open_clip, all of them right, or left out") \
    X(TRAINING, TEXT, positives_key, "positives-key", "(caption)", "KEY|COLUMN", \
        "which pairs have equal keys: those of one caption, image (its path), cls (class), or text in a CSV column") \
    X(TRAINING, FLAG, distinct_batches, "distinct-batches", "", "", "no two pairs with equal keys in a step") \
    X(LOCKING, FLAG, lock_image, "lock-image", "", "", "freeze the image tower") \
    X(LOCKING, INT, lock_image_unlocked_groups, "lock-image-unlocked-groups", "0", "[0,1e3]", \
        "of a locked image tower train the last N groups: projection, blocks from the last on, embeddings") \
    X(LOCKING, FLAG, lock_text, "lock-text", "", "", "freeze the text tower") \
    X(LOCKING, INT, lock_text_unlocked_layers, "lock-text-unlocked-layers", "0", "[0,1e3]", "of a locked text tower train the last N groups") \
    X(LOCKING, FLAG, lock_logit_scale, "lock-logit-scale", "", "", "freeze the logit scale") \
    X(LOCKING, TEXT, feature_cache, "feature-cache", "(in memory)", "FILE", "where the features of a locked tower are kept for the next run") \
    X(SCHEDULE, CHOICE, lr_scheduler, "lr-scheduler", "cosine", "cosine linear stlr exponential step cosine-restarts one-cycle const const-cooldown", \
        "learning rate after the warmup; stlr and one-cycle bring their own ramp") \
    X(SCHEDULE, SHARE, warmup, "warmup", "10%", "[0,1e12]", "linear warmup: steps, or a share of the run, rounded down") \
    X(SCHEDULE, REAL, min_lr_ratio, "min-lr-ratio", "0", "[0,1]", "floor of the schedule, as a share of --lr") \
    X(SCHEDULE, REAL, cut_frac, "cut-frac", "0.1", "[0,1]", "stlr: share of the run that rises") \
    X(SCHEDULE, REAL, stlr_ratio, "stlr-ratio", "32", "[1,1e9]", "stlr: peak over lowest rate") \
    X(SCHEDULE, REAL, gamma, "gamma", "(exponential 0.95, step 0.1)", "(0,1]", "exponential, step: factor on the rate for every --step-size steps") \
    X(SCHEDULE, INT, step_size, "step-size", "(exponential an epoch, step a third of the run)", "[1,1e12]", "exponential, step: in so many steps the rate falls by --gamma") \
    X(SCHEDULE, INT, t_0, "t-0", "(a quarter of the run)", "[1,1e12]", "cosine-restarts: steps to the first restart") \
    X(SCHEDULE, INT, t_mult, "t-mult", "2", "[1,1e6]", "cosine-restarts: every period is so many times as long as the one before") \
    X(SCHEDULE, REAL, pct_start, "pct-start", "0.3", "[0,1]", "one-cycle: share of the run that rises") \
    X(SCHEDULE, REAL, div_factor, "div-factor", "25", "[1,1e12]", "one-cycle: peak over first rate") \
    X(SCHEDULE, REAL, final_div_factor, "final-div-factor", "1e4", "[1,1e12]", "one-cycle: first over last rate") \
    X(SCHEDULE, CHOICE, anneal, "anneal", "cosine", "cosine linear", "one-cycle: up and down along half cosines or straight lines") \
    X(SCHEDULE, FLAG, three_phase, "three-phase", "", "", "one-cycle: down to the first rate as fast as up, then on to the last") \
    X(SCHEDULE, FLAG, cycle_momentum, "cycle-momentum", "", "", "one-cycle: beta1 from 0.95 to 0.85 and back, against the rate, in place of --beta1") \
    X(SCHEDULE, INT, epochs_cooldown, "epochs-cooldown", "(none)", "[1,1e6]", "const-cooldown: the last N epochs fall") \
    X(SCHEDULE, REAL, lr_cooldown_end, "lr-cooldown-end", "0", "[0,inf)", "const-cooldown: the rate they end at") \
    X(SCHEDULE, REAL, lr_cooldown_power, "lr-cooldown-power", "1", "(0,100]", "const-cooldown: power of the fall; 1: a straight line") \
    X(SCHEDULE, TEXT, print_schedule, "print-schedule", "(none)", "FILE.svg", "draw the rate over the run, and end; needs --steps or --train-data") \
    X(EVALUATION, LIST, zeroshot_data, "zeroshot-data", "(none)", "[NAME=]PATH", \
        "labelled pictures: a folder of class folders, a CSV, tars with .cls; may be repeated") \
    X(EVALUATION, TEXT, classnames, "classnames", "(folder names)", "FILE", "class names, one a line; line i is class i") \
    X(EVALUATION, TEXT, templates, "templates", "(a photo of a {}.)", "FILE", "prompts, one a line, {} for the class name") \
    X(EVALUATION, INT, zeroshot_frequency, "zeroshot-frequency", "1", "[0,1e6]", "zero-shot evaluation every N epochs; 0: never") \
    X(EVALUATION, INT, val_frequency, "val-frequency", "1", "[0,1e6]", "validation every N epochs; 0: never") \
    X(EVALUATION, SHARE, eval_steps, "eval-steps", "0", "[0,1e12]", "also evaluate every N steps, or by a share of an epoch (50%: twice an epoch); 0: by epochs only") \
    X(EVALUATION, INT, early_stop, "early-stop", "0", "[0,1e6]", "end the run after N evaluations without a lower val_loss; 0: never") \
    X(EVALUATION, TEXT, best_metric, "best-metric", "(zeroshot_top1 of the first set, else val_loss)", "NAME|none", \
        "by which metric checkpoints/best.bin is kept, as named in metrics.jsonl") \
    X(EVALUATION, INT, val_retrieval_chunk_size, "val-retrieval-chunk-size", "4096", "[0,1e9]", "rows of the retrieval matrix held at once; 0: all") \
    X(EVALUATION, FLAG, eval_only, "eval-only", "", "", "evaluate the model and end") \
    X(EVALUATION, TEXT, save_features, "save-features", "(none)", "FILE.safetensors", "write the image and text features of the evaluated data") \
    X(EVALUATION, LIST, classify, "classify", "(none)", "IMAGE...", "print the classes of these pictures with their probabilities, and end") \
    X(OUTPUT, TEXT, logs, "logs", "logs", "DIR", "where run folders go") \
    X(OUTPUT, TEXT, name, "name", "(date_time-model-lr-batch)", "NAME", "name of the run and its folder") \
    X(OUTPUT, INT, save_frequency, "save-frequency", "1", "[0,1e6]", "checkpoint every N epochs and at the end; 0: at the end") \
    X(OUTPUT, SHARE, save_steps, "save-steps", "0", "[0,1e12]", "checkpoint every N steps, or by a share of an epoch; 0: none between epochs") \
    X(OUTPUT, FLAG, save_most_recent, "save-most-recent", "", "", "also keep the newest checkpoint under the name latest") \
    X(OUTPUT, INT, keep_checkpoints, "keep-checkpoints", "0", "[0,1e6]", "keep only the N newest checkpoints, latest and best beside them; 0: all") \
    X(OUTPUT, FLAG, delete_previous_checkpoint, "delete-previous-checkpoint", "", "", "keep only the newest checkpoint") \
    X(OUTPUT, INT, log_every_n_steps, "log-every-n-steps", "1", "[1,1e9]", "one line and one record of metrics every N steps") \
    X(OUTPUT, TEXT, report_to, "report-to", "(none)", "tensorboard,wandb", "also write TensorBoard events; report to Weights & Biases by the wandb package") \
    X(OUTPUT, TEXT, wandb_project_name, "wandb-project-name", "clip.c", "NAME", "wandb: name of the project")

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
    "Fine-tunes a CLIP model on pictures and their captions.\n\n" \
    "  fine-tune      train_clip --pretrained ViT-B-32-openai.bin --train-data pairs.csv\n" \
    "  and measure    ... --zeroshot-data test_folder --classnames names.txt --val-split 0.1\n" \
    "  from random    train_clip --model ViT-S-32 --train-data 'shards/{00000..00099}.tar'\n" \
    "  go on          train_clip --resume latest --name NAME, with the other options as before\n" \
    "  classify       train_clip --pretrained FILE --classnames names.txt --classify a.jpg b.jpg\n"
#endif
#define ALL_OPTIONS(X) PROGRAM_OPTIONS(X) TRAIN_OPTIONS(X)

// open_clip's options, and our own to come, that are no rows of the table: by name, or as "name value" for
// one value of an option; | separates several, * stands for anything. IGNORED_FLAG, IGNORED_VALUE (with a
// value behind it): means nothing here; REFUSED: would change the result, so it ends the program.
// verdict, names, what to say
#ifdef __CUDACC__
#define DEVICE_OPTIONS(F) \
    F(REFUSED, "device cpu", "this program computes on the GPU; use train_clip") \
    F(IGNORED_VALUE, "device", "this program computes on the GPU; CUDA_VISIBLE_DEVICES chooses which")
#else
#define DEVICE_OPTIONS(F) \
    F(IGNORED_VALUE, "device cpu", "this program computes on the CPU") \
    F(REFUSED, "device", "this program computes on the CPU; leave it out, or use train_clipcu")
#endif
#define FOREIGN_OPTIONS(F) \
    DEVICE_OPTIONS(F) \
    F(IGNORED_FLAG, "local-loss|gather-with-grad", "loss and gradient are exact over the whole batch") \
    F(IGNORED_FLAG, "lock-text-freeze-layer-norm", "--lock-text freezes LayerNorm as well") \
    F(IGNORED_FLAG, "lock-image-freeze-bn-stats|use-bn-sync", "there is no batch norm") \
    F(IGNORED_FLAG, "torchcompile|ddp-static-graph|no-set-device-rank", "there is no PyTorch") \
    F(IGNORED_VALUE, "torchcompile-*|dist-url|dist-backend", "there is no PyTorch") \
    F(IGNORED_FLAG, "log-local|debug|copy-codebase", "a run has one log, the program one file") \
    F(REFUSED, "precision amp|precision fp16|precision amp_bfloat16|precision bf16|precision pure_*", "use --precision amp_bf16, or auto") \
    F(REFUSED, "skip-scheduler", "use --lr-scheduler const") \
    F(REFUSED, "siglip|coca-*|loss-dist-impl", "only CLIP's softmax loss is offered; leave it out") \
    F(REFUSED, "distill-*", "distillation is not offered; leave it out") \
    F(REFUSED, "opt|opt-*|momentum", "the optimizer is AdamW, set by --lr --wd --beta1 --beta2 --eps; leave it out") \
    F(REFUSED, "*audio*|*naflex*", "only pictures of one size and text are offered") \
    F(REFUSED, "*bucket*|text-pad-multiple", "captions are packed without padding; leave it out") \
    F(REFUSED, "fsdp*", "the model is not split over devices; leave it out") \
    F(REFUSED, "remote-sync*", "copy the run folder with a tool of your own") \
    F(REFUSED, "log-metric-every-n-steps", "use --log-every-n-steps") \
    F(REFUSED, "train-loss-ema-samples", "curves.svg shows a smoothed loss; leave it out") \
    F(REFUSED, "val-retrieval-precision|use-bnb-linear", "weights and scores are fp32; leave it out") \
    F(REFUSED, "json-text-key-probs", "the first non-empty key of --json-text-key counts; leave it out") \
    F(REFUSED, "force-custom-text|text-pooler-own-group", "the text tower is CLIP's own; leave it out") \
    F(REFUSED, "imagenet-v*", "not offered yet; use --zeroshot-data DIR --classnames FILE") \
    F(REFUSED, "visual-layer-decay|wandb-*", "not offered yet; leave it out")

// clang-format on
#endif
