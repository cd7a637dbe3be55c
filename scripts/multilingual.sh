#!/usr/bin/env bash
# Multilingual: captions in several languages, with CLIP's own tokenizer.
# When:  pairs in languages other than English, whether or not an image has captions in several of them:
#        TRAIN=train_multilingual.csv scripts/multilingual.sh
# Does:  CLIP's tokenizer falls back to bytes, so no script is unknown to it, but other languages than English
#        take more tokens. The image tower is locked and encodes each image once; the text tower learns the
#        languages. If an image occurs in a step with captions in two languages, both are correct: --positives
#        mask --positives-key image leaves the other one out of the loss.
# Watch: captions beyond the context length are cut (--force-context-length 128 if many are). One --val-data
#        per language shows which ones lag: --val-data en=val_en.csv --val-data ja=val_ja.csv. Keep English
#        among the pairs, or it is forgotten.
. "$(dirname "$0")/common.sh"
if [ $is_trial = yes ]; then # the trial's second language, translated word by word
    for part in train val; do
        sed -E -e 's/red/rot/; s/yellow/gelb/; s/green/grün/; s/blue/blau/; s/purple/lila/; s/brown/braun/; s/black/schwarz/' \
            -e 's/circle/Kreis/; s/square/Quadrat/; s/triangle/Dreieck/; s/diamond/Raute/; s/cross/Kreuz/; s/star/Stern/; s/moon/Mond/' \
            -e 's/a crayon drawing of|an outline of|a sketch of/eine Zeichnung:/; s/in crayon/mit Kreide/; s/on cardboard/auf Pappe/' \
            -e 's/,an? /,ein /; s/: an? /: ein /; s/small/klein/; s/medium/mittel/; s/large/groß/' \
            -e 's/on the left/links/; s/on the right/rechts/; s/at the top/oben/; s/at the bottom/unten/; s/in the middle/in der Mitte/' \
            "$trial/card/$part.csv" > "$trial/card/${part}_de.csv"
    done
    TRAIN=$TRAIN::$trial/card/train_de.csv
    set -- "$@" --val-data "en=$trial/card/val.csv" --val-data "de=$trial/card/val_de.csv"
fi
recipe=(--lock-image --aug-cfg none --positives mask --positives-key image --lr "$(rate 1e-4)" --epochs 5 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
