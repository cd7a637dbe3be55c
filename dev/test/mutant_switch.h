// Included before everything in the programs that mutate.py builds: they hold all faults, of which the
// environment's MUTANT=number switches one on.
#ifndef CLIPC_MUTANT_SWITCH_H
#define CLIPC_MUTANT_SWITCH_H

extern int mutant_now;                // 0: none
extern unsigned char *mutant_reached; // which were met; the file that MUTANTS_REACHED names

#define MUTANT(number) (mutant_reached[number] = 1, mutant_now == (number))

#endif
