"""Backbones of `keras_hub` at small sizes, with random weights: nothing is downloaded.

Each entry of `BACKBONES` is a function of the module `keras_hub`, so that one that
fails, or is missing in a version of `keras_hub`, leaves the others alone.
"""

IMAGE = (64, 64, 3)
WIDTHS = {"hidden_dim": 32, "intermediate_dim": 64}
ENCODER = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 4, **WIDTHS}
DECODER = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    **WIDTHS,
}
VISION = {"patch_size": 16, "num_layers": 2, "num_heads": 4, **WIDTHS}
EXPERTS = {"moe_intermediate_dim": 16, "num_experts": 4, "top_k": 2}
LINEAR_HEADS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _resnet(hub, block="basic_block", pre_activation=False, image=IMAGE):
    return hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[2, 2, 2, 2],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block,
        use_pre_activation=pre_activation,
        image_shape=image,
    )


def _efficientnet(hub):
    return hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 40],
        stackwise_expansion_ratios=[1, 4, 6],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.25, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["fused", "unfused", "unfused"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        input_shape=IMAGE,
    )


def _mobilenet(hub):
    return hub.models.MobileNetBackbone(
        stackwise_expansion=[[16, 24], [48, 48]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=48,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=64,
        squeeze_and_excite=0.5,
        image_shape=IMAGE,
    )


def _mobilenet_v5(hub):
    def stages(first, second):
        return [[first], [second, second]]

    return hub.models.MobileNetV5Backbone(
        stackwise_block_types=[["er"], ["uir", "uir"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[16], [24, 24]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=stages("relu", "relu"),
        stackwise_exp_ratios=stages(4.0, 6.0),
        stackwise_se_ratios=stages(0.0, 0.0),
        stackwise_dw_kernel_sizes=stages(0, 5),
        stackwise_dw_start_kernel_sizes=stages(0, 0),
        stackwise_dw_end_kernel_sizes=stages(0, 0),
        stackwise_exp_kernel_sizes=stages(3, 0),
        stackwise_pw_kernel_sizes=stages(1, 0),
        stackwise_num_heads=stages(0, 0),
        stackwise_key_dims=stages(0, 0),
        stackwise_value_dims=stages(0, 0),
        stackwise_kv_strides=stages(0, 0),
        stackwise_use_cpe=stages(False, False),
        use_msfa=False,
        image_shape=IMAGE,
    )


def _mit(hub):
    return hub.models.MiTBackbone(
        num_layers=4,
        hidden_dims=[8, 16, 24, 32],
        layerwise_depths=[1, 1, 1, 1],
        layerwise_num_heads=[1, 2, 2, 4],
        layerwise_sr_ratios=[8, 4, 2, 1],
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        max_drop_path_rate=0.1,
        image_shape=IMAGE,
    )


def _hgnet_v2(hub, **arguments):
    return hub.models.HGNetV2Backbone(
        depths=[1, 1, 2],
        embedding_size=16,
        hidden_sizes=[32, 64, 64],
        stem_channels=[3, 8, 16],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[
            (16, 8, 32, 1, 2, 3),
            (32, 16, 64, 1, 2, 3),
            (64, 16, 64, 2, 2, 5),
        ],
        apply_downsample=[False, True, True],
        use_lightweight_conv_block=[False, False, True],
        image_shape=IMAGE,
        **arguments,
    )


def _d_fine(hub):
    stages = ["stage2", "stage3"]
    return hub.models.DFineBackbone(
        backbone=_hgnet_v2(hub, out_features=stages),
        decoder_in_channels=[32, 32],
        encoder_hidden_dim=32,
        num_labels=5,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=6,
        anchor_image_size=IMAGE[:2],
        feat_strides=[8, 16],
        num_feature_levels=2,
        hidden_dim=32,
        encoder_in_channels=[64, 64],
        encode_proj_layers=[1],
        num_attention_heads=4,
        encoder_ffn_dim=64,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=16,
        num_lqe_layers=2,
        out_features=stages,
        image_shape=IMAGE,
        seed=0,
    )


def _vit_det(hub):
    return hub.models.ViTDetBackbone(
        hidden_size=32,
        num_layers=2,
        intermediate_dim=64,
        num_heads=4,
        global_attention_layer_indices=[1],
        image_shape=IMAGE,
        patch_size=8,
        num_output_channels=16,
        window_size=2,
    )


def _sam(hub):
    return hub.models.SAMBackbone(
        image_encoder=_vit_det(hub),
        prompt_encoder=hub.layers.SAMPromptEncoder(
            hidden_size=16,
            image_embedding_size=(8, 8),
            input_image_size=IMAGE[:2],
            mask_in_channels=8,
        ),
        mask_decoder=hub.layers.SAMMaskDecoder(
            num_layers=2,
            hidden_size=16,
            intermediate_dim=32,
            num_heads=4,
            embedding_dim=16,
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=16,
        ),
    )


def _towers(hub, name, **arguments):
    vision = getattr(hub.models, f"{name}VisionEncoder")
    text = getattr(hub.models, f"{name}TextEncoder")
    return getattr(hub.models, f"{name}Backbone")(
        vision_encoder=vision(image_shape=IMAGE, **VISION),
        text_encoder=text(embedding_dim=32, max_sequence_length=8, **ENCODER),
        **arguments,
    )


def _dino_v2(hub, layers=2, patch=16):
    sizes = {**VISION, "num_layers": layers, "patch_size": patch}
    return hub.models.DINOV2Backbone(
        image_shape=IMAGE, position_embedding_shape=IMAGE, **sizes
    )


def _depth_anything(hub):
    return hub.models.DepthAnythingBackbone(
        image_encoder=_dino_v2(hub, layers=4, patch=4),
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[8, 16, 16, 32],
        fusion_hidden_dim=16,
        head_hidden_dim=8,
        head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )


def _vit(hub, **arguments):
    sizes = {"image_shape": IMAGE, "patch_size": (16, 16), "num_layers": 2}
    return hub.models.ViTBackbone(
        **sizes, num_heads=4, hidden_dim=32, mlp_dim=64, **arguments
    )


def _parseq(hub):
    return hub.models.PARSeqBackbone(
        image_encoder=_vit(hub, use_class_token=False),
        vocabulary_size=50,
        max_label_length=8,
        decoder_hidden_dim=32,
        num_decoder_layers=1,
        num_decoder_heads=4,
        decoder_mlp_dim=64,
    )


def _t5_gemma(hub):
    sizes = {
        "num_layers": 2,
        "hidden_dim": 32,
        "intermediate_dim": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    halves = {f"{h}_{k}": v for h in ("encoder", "decoder") for k, v in sizes.items()}
    return hub.models.T5GemmaBackbone(
        vocabulary_size=50, sliding_window=16, cross_attention_hidden_size=32, **halves
    )


def _smol_lm3(hub):
    return hub.models.SmolLM3Backbone(
        vocabulary_size=50,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=False,
        attention_dropout=0.0,
        rope_layer_enabled_list=[True, False],
        layer_types=["full_attention", "full_attention"],
        mlp_bias=False,
        layer_norm_epsilon=1e-5,
        max_position_embeddings=16,
        rope_theta=10000.0,
        partial_rotary_factor=1.0,
        **WIDTHS,
    )


BACKBONES = {
    # Encoders of text
    "ALBERT": lambda hub: hub.models.AlbertBackbone(embedding_dim=16, **ENCODER),
    "BERT": lambda hub: hub.models.BertBackbone(**ENCODER),
    "DeBERTa v3": lambda hub: hub.models.DebertaV3Backbone(bucket_size=8, **ENCODER),
    "DistilBERT": lambda hub: hub.models.DistilBertBackbone(**ENCODER),
    "ELECTRA": lambda hub: hub.models.ElectraBackbone(
        vocab_size=50, num_layers=2, num_heads=4, embedding_dim=16, **WIDTHS
    ),
    "ESM": lambda hub: hub.models.ESMBackbone(**ENCODER),
    "FNet": lambda hub: hub.models.FNetBackbone(
        vocabulary_size=50, num_layers=2, **WIDTHS
    ),
    "RoBERTa": lambda hub: hub.models.RobertaBackbone(**ENCODER),
    "RoFormer v2": lambda hub: hub.models.RoformerV2Backbone(head_size=8, **ENCODER),
    "XLM-RoBERTa": lambda hub: hub.models.XLMRobertaBackbone(**ENCODER),
    "XLNet": lambda hub: hub.models.XLNetBackbone(**ENCODER),
    # Decoders of text
    "BLOOM": lambda hub: hub.models.BloomBackbone(**ENCODER),
    "Falcon": lambda hub: hub.models.FalconBackbone(
        vocabulary_size=50, num_layers=2, num_attention_heads=4, **WIDTHS
    ),
    "Gemma": lambda hub: hub.models.GemmaBackbone(head_dim=8, **DECODER),
    "Gemma 2": lambda hub: hub.models.GemmaBackbone(
        head_dim=8,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        attention_logit_soft_cap=50.0,
        final_logit_soft_cap=30.0,
        use_sliding_window_attention=True,
        **DECODER,
    ),
    "Gemma 3": lambda hub: hub.models.Gemma3Backbone(
        image_size=16,
        head_dim=8,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        use_sliding_window_attention=True,
        **DECODER,
    ),
    "Gemma 4": lambda hub: hub.models.Gemma4Backbone(
        image_size=16, head_dim=8, **DECODER
    ),
    "GPT-2": lambda hub: hub.models.GPT2Backbone(**ENCODER),
    "GPT-NeoX": lambda hub: hub.models.GPTNeoXBackbone(**ENCODER),
    "GPT-OSS": lambda hub: hub.models.GptOssBackbone(num_experts=4, **DECODER),
    "Llama": lambda hub: hub.models.LlamaBackbone(**DECODER),
    "Llama 3": lambda hub: hub.models.Llama3Backbone(**DECODER),
    "Mistral": lambda hub: hub.models.MistralBackbone(**DECODER),
    "Mixtral": lambda hub: hub.models.MixtralBackbone(num_experts=4, **DECODER),
    "OPT": lambda hub: hub.models.OPTBackbone(**ENCODER),
    "Phi-3": lambda hub: hub.models.Phi3Backbone(**DECODER),
    "Qwen 2": lambda hub: hub.models.QwenBackbone(**DECODER),
    "Qwen MoE": lambda hub: hub.models.QwenMoeBackbone(
        shared_expert_intermediate_dim=16, **EXPERTS, **DECODER
    ),
    "Qwen 3": lambda hub: hub.models.Qwen3Backbone(head_dim=8, **DECODER),
    "Qwen 3 MoE": lambda hub: hub.models.Qwen3MoeBackbone(
        head_dim=8, **EXPERTS, **DECODER
    ),
    "Qwen 3.5": lambda hub: hub.models.Qwen3_5Backbone(
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        **LINEAR_HEADS,
        **DECODER,
    ),
    "RWKV-7": lambda hub: hub.models.RWKV7Backbone(
        hidden_size=32,
        head_size=8,
        num_layers=2,
        vocabulary_size=50,
        intermediate_dim=64,
        gate_lora=8,
        mv_lora=8,
        aaa_lora=8,
        decay_lora=8,
    ),
    "SmolLM 3": _smol_lm3,
    # From a sequence to another
    "BART": lambda hub: hub.models.BartBackbone(**ENCODER),
    "EdRec": lambda hub: hub.models.EdRecBackbone(
        vocab_size=50, num_layers_enc=2, num_layers_dec=2, num_heads=4, **WIDTHS
    ),
    "Moonshine": lambda hub: hub.models.MoonshineBackbone(
        vocabulary_size=50,
        filter_dim=32,
        encoder_num_layers=2,
        decoder_num_layers=2,
        encoder_num_heads=4,
        decoder_num_heads=4,
        **WIDTHS,
    ),
    "T5": lambda hub: hub.models.T5Backbone(**ENCODER),
    "T5Gemma": _t5_gemma,
    "Whisper": lambda hub: hub.models.WhisperBackbone(
        num_mels=8,
        max_encoder_sequence_length=16,
        max_decoder_sequence_length=8,
        **ENCODER,
    ),
    # Images
    "BASNet": lambda hub: hub.models.BASNetBackbone(
        image_encoder=_resnet(hub, image=(None, None, 3)),
        num_classes=1,
        image_shape=IMAGE,
        projection_filters=64,
    ),
    "CSPNet": lambda hub: hub.models.CSPNetBackbone(
        stem_filters=16,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2],
        stackwise_strides=[1, 2],
        stackwise_num_filters=[16, 32],
        block_type="dark_block",
        stage_type="csp",
        stem_padding="same",
        block_ratio=[0.5],
        image_shape=IMAGE,
    ),
    "D-FINE": _d_fine,
    "DeepLabV3": lambda hub: hub.models.DeepLabV3Backbone(
        image_encoder=_resnet(hub),
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[2, 4, 6],
        low_level_feature_key="P2",
        projection_filters=8,
        image_shape=IMAGE,
    ),
    "DeiT": lambda hub: hub.models.DeiTBackbone(
        image_shape=IMAGE, **{**VISION, "patch_size": (16, 16)}
    ),
    "DenseNet": lambda hub: hub.models.DenseNetBackbone(
        stackwise_num_repeats=[2, 2, 2], image_shape=IMAGE, growth_rate=8
    ),
    "Depth Anything": _depth_anything,
    "DINOv2": _dino_v2,
    "DINOv3": lambda hub: hub.models.DINOV3Backbone(image_shape=IMAGE, **VISION),
    "EfficientNet": _efficientnet,
    "HGNetV2": _hgnet_v2,
    "MiT": _mit,
    "MobileNet": _mobilenet,
    "MobileNetV5": _mobilenet_v5,
    "PARSeq": _parseq,
    "ResNet": _resnet,
    "ResNetV2": lambda hub: _resnet(hub, "bottleneck_block", True),
    "RetinaNet": lambda hub: hub.models.RetinaNetBackbone(
        image_encoder=_resnet(hub),
        min_level=3,
        max_level=5,
        use_p5=False,
        image_shape=IMAGE,
    ),
    "SAM": _sam,
    "SegFormer": lambda hub: hub.models.SegFormerBackbone(
        image_encoder=_mit(hub), projection_filters=16
    ),
    "Swin": lambda hub: hub.models.SwinTransformerBackbone(
        image_shape=IMAGE,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
    ),
    "VGG": lambda hub: hub.models.VGGBackbone(
        stackwise_num_repeats=[2, 2, 2],
        stackwise_num_filters=[16, 32, 32],
        image_shape=IMAGE,
    ),
    "VideoPrism": lambda hub: hub.models.VideoPrismBackbone(
        num_frames=2,
        patch_size=16,
        num_heads=4,
        num_spatial_layers=1,
        num_temporal_layers=1,
        num_auxiliary_layers=0,
        image_shape=IMAGE,
        **WIDTHS,
    ),
    "ViT": _vit,
    "ViTDet": _vit_det,
    "Xception": lambda hub: hub.models.XceptionBackbone(
        stackwise_conv_filters=[[16, 32], [32, 48], [48, 48]],
        stackwise_pooling=[True, True, False],
        image_shape=IMAGE,
    ),
    # Images and text
    "CLIP": lambda hub: _towers(hub, "CLIP", projection_dim=16),
    "MetaCLIP 2": lambda hub: _towers(hub, "MetaCLIP2", projection_dim=16),
    "PaliGemma": lambda hub: hub.models.PaliGemmaBackbone(
        image_size=32,
        head_dim=8,
        vit_patch_size=16,
        vit_num_heads=4,
        vit_hidden_dim=32,
        vit_num_layers=2,
        vit_intermediate_dim=64,
        **DECODER,
    ),
    "SigLIP": lambda hub: _towers(hub, "SigLIP"),
}
# Shapes of inputs by their names, where text of 8 tokens or an image is not meant.
INPUT_SHAPES = {
    "Moonshine": {
        "encoder_input_values": (2, 2000, 1),
        "encoder_padding_mask": (2, 2000),
    },
    "SAM": {"boxes": (2, 1, 2, 2), "masks": (2, 0, *IMAGE[:2], 1)},
    "Whisper": {"encoder_features": (2, 16, 8)},
}
