// clipc/math/plain.h once more in double, for finite differences and for the errors of fp32:
// linear_forward_plain is linear_forward_64 here, and so on. Included after plain.h itself.
#ifndef CLIPC_PLAIN64_H
#define CLIPC_PLAIN64_H

#include "clipc/math/plain.h"

#undef CLIPC_PLAIN_H
#define real double
#define linear_forward_plain linear_forward_64
#define linear_backward_input_plain linear_backward_input_64
#define linear_backward_weight_plain linear_backward_weight_64
#define layernorm_forward_plain layernorm_forward_64
#define layernorm_backward_plain layernorm_backward_64
#define attention_probabilities_plain attention_probabilities_64
#define attention_forward_plain attention_forward_64
#define attention_backward_plain attention_backward_64
#define activation_plain activation_64
#define activation_forward_plain activation_forward_64
#define activation_backward_plain activation_backward_64
#define image_embedding_forward_plain image_embedding_forward_64
#define image_embedding_backward_plain image_embedding_backward_64
#define text_embedding_forward_plain text_embedding_forward_64
#define text_embedding_backward_plain text_embedding_backward_64
#define normalize_forward_plain normalize_forward_64
#define normalize_backward_plain normalize_backward_64
#define contrastive_target_plain contrastive_target_64
#define cross_entropy_plain cross_entropy_64
#define contrastive_loss_plain contrastive_loss_64
#define add_gradient_plain add_gradient_64
#define adamw_plain adamw_64
#include "clipc/math/plain.h"
#undef linear_forward_plain
#undef linear_backward_input_plain
#undef linear_backward_weight_plain
#undef layernorm_forward_plain
#undef layernorm_backward_plain
#undef attention_probabilities_plain
#undef attention_forward_plain
#undef attention_backward_plain
#undef activation_plain
#undef activation_forward_plain
#undef activation_backward_plain
#undef image_embedding_forward_plain
#undef image_embedding_backward_plain
#undef text_embedding_forward_plain
#undef text_embedding_backward_plain
#undef normalize_forward_plain
#undef normalize_backward_plain
#undef contrastive_target_plain
#undef cross_entropy_plain
#undef contrastive_loss_plain
#undef add_gradient_plain
#undef adamw_plain

#endif
