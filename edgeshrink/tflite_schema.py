"""The layout of `.tflite` files: tables, enums, unions and operator numbers, as plain data.

The facts are those of LiteRT's schema, version 3 (of ai-edge-litert 2.3.0; a test compares all of
them with that package). Option names are TFLite's in snake case, with one exception:
`fused_activation_function` is `activation` here.
"""

from __future__ import annotations

from typing import Final

from edgeshrink.flatbuffer import parse_schema

IDENTIFIER: Final = b"TFL3"
VERSION: Final = 3

# Numpy's name where numpy has the type, else TFLite's in lower case; bits per value, None where
# values differ in size.
DTYPES: Final = {
    "FLOAT32": ("float32", 32), "FLOAT16": ("float16", 16), "INT32": ("int32", 32),
    "UINT8": ("uint8", 8), "INT64": ("int64", 64), "STRING": ("string", None),
    "BOOL": ("bool", 8), "INT16": ("int16", 16), "COMPLEX64": ("complex64", 64),
    "INT8": ("int8", 8), "FLOAT64": ("float64", 64), "COMPLEX128": ("complex128", 128),
    "UINT64": ("uint64", 64), "RESOURCE": ("resource", None), "VARIANT": ("variant", None),
    "UINT32": ("uint32", 32), "UINT16": ("uint16", 16), "INT4": ("int4", 4),
    "BFLOAT16": ("bfloat16", 16), "INT2": ("int2", 2), "UINT4": ("uint4", 4),
    "FLOAT8_E4M3FN": ("float8_e4m3fn", 8), "FLOAT8_E5M2": ("float8_e5m2", 8),
}  # fmt: skip
BITS_PER_VALUE: Final = dict(DTYPES.values())
NUMPY_DTYPES: Final = frozenset(
    name for name, bits in DTYPES.values()
    if bits and bits >= 8 and not name.startswith(("bfloat", "float8"))
)  # fmt: skip

SCHEMA: Final = parse_schema("""
enum TensorType:i8  FLOAT32 FLOAT16 INT32 UINT8 INT64 STRING BOOL INT16 COMPLEX64 INT8 FLOAT64
  COMPLEX128 UINT64 RESOURCE VARIANT UINT32 UINT16 INT4 BFLOAT16 INT2 UINT4 FLOAT8_E4M3FN
  FLOAT8_E5M2
union QuantizationDetails  CustomQuantization BlockwiseQuantization MultiAxisQuantization
enum DimensionType:i8  DENSE SPARSE_CSR
union SparseIndexVector  Int32Vector Uint16Vector Uint8Vector
union BuiltinOptions  Conv2DOptions DepthwiseConv2DOptions ConcatEmbeddingsOptions
  LSHProjectionOptions Pool2DOptions SVDFOptions RNNOptions FullyConnectedOptions SoftmaxOptions
  ConcatenationOptions AddOptions L2NormOptions LocalResponseNormalizationOptions LSTMOptions
  ResizeBilinearOptions CallOptions ReshapeOptions SkipGramOptions SpaceToDepthOptions
  EmbeddingLookupSparseOptions MulOptions PadOptions GatherOptions BatchToSpaceNDOptions
  SpaceToBatchNDOptions TransposeOptions ReducerOptions SubOptions DivOptions SqueezeOptions
  SequenceRNNOptions StridedSliceOptions ExpOptions TopKV2Options SplitOptions LogSoftmaxOptions
  CastOptions DequantizeOptions MaximumMinimumOptions ArgMaxOptions LessOptions NegOptions
  PadV2Options GreaterOptions GreaterEqualOptions LessEqualOptions SelectOptions SliceOptions
  TransposeConvOptions SparseToDenseOptions TileOptions ExpandDimsOptions EqualOptions
  NotEqualOptions ShapeOptions PowOptions ArgMinOptions FakeQuantOptions PackOptions
  LogicalOrOptions OneHotOptions LogicalAndOptions LogicalNotOptions UnpackOptions FloorDivOptions
  SquareOptions ZerosLikeOptions FillOptions BidirectionalSequenceLSTMOptions
  BidirectionalSequenceRNNOptions UnidirectionalSequenceLSTMOptions FloorModOptions RangeOptions
  ResizeNearestNeighborOptions LeakyReluOptions SquaredDifferenceOptions MirrorPadOptions
  AbsOptions SplitVOptions UniqueOptions ReverseV2Options AddNOptions GatherNdOptions CosOptions
  WhereOptions RankOptions ReverseSequenceOptions MatrixDiagOptions QuantizeOptions
  MatrixSetDiagOptions HardSwishOptions IfOptions WhileOptions DepthToSpaceOptions
  NonMaxSuppressionV4Options NonMaxSuppressionV5Options ScatterNdOptions SelectV2Options
  DensifyOptions SegmentSumOptions BatchMatMulOptions CumsumOptions CallOnceOptions
  BroadcastToOptions Rfft2dOptions Conv3DOptions HashtableOptions HashtableFindOptions
  HashtableImportOptions HashtableSizeOptions VarHandleOptions ReadVariableOptions
  AssignVariableOptions RandomOptions BucketizeOptions GeluOptions DynamicUpdateSliceOptions
  UnsortedSegmentProdOptions UnsortedSegmentMaxOptions UnsortedSegmentMinOptions
  UnsortedSegmentSumOptions ATan2Options SignOptions BitcastOptions BitwiseXorOptions
  RightShiftOptions
union BuiltinOptions2  StablehloConcatenateOptions StablehloBroadcastInDimOptions
  StablehloSliceOptions StablehloConvolutionOptions StablehloCustomCallOptions
  StablehloReduceOptions StablehloScatterOptions StablehloCompareOptions
  StablehloDynamicSliceOptions StablehloPadOptions StablehloIotaOptions StablehloDotGeneralOptions
  StablehloReduceWindowOptions StablehloSortOptions StablehloWhileOptions StablehloGatherOptions
  StablehloTransposeOptions DilateOptions StablehloRngBitGeneratorOptions ReduceWindowOptions
  StableHLOCompositeOptions StablehloShiftLeftOptions StablehloCaseOptions
enum StablehloPrecisionConfig:u32  DEFAULT HIGH HIGHEST
enum StablehloComparisonDirection:u32  STABLEHLO_COMPARISON_DIRECTION_EQ
  STABLEHLO_COMPARISON_DIRECTION_NE STABLEHLO_COMPARISON_DIRECTION_GE
  STABLEHLO_COMPARISON_DIRECTION_GT STABLEHLO_COMPARISON_DIRECTION_LE
  STABLEHLO_COMPARISON_DIRECTION_LT
enum StablehloComparisonType:u32  STABLEHLO_COMPARISON_TYPE_NOTYPE STABLEHLO_COMPARISON_TYPE_FLOAT
  STABLEHLO_COMPARISON_TYPE_FLOAT_TOTAL_ORDER STABLEHLO_COMPARISON_TYPE_SIGNED
  STABLEHLO_COMPARISON_TYPE_UNSIGNED
enum RngAlgorithm:i8  DEFAULT PHILOX THREEFRY
enum Padding:i8  SAME VALID
enum ActivationFunctionType:i8  NONE RELU RELU_N1_TO_1 RELU6 TANH SIGN_BIT
enum LSHProjectionType:i8  UNKNOWN SPARSE DENSE
enum FullyConnectedOptionsWeightsFormat:i8  DEFAULT SHUFFLED4x16INT8
enum LSTMKernelType:i8  FULL BASIC
enum CombinerType:i8  SUM MEAN SQRTN
enum MirrorPadMode:i8  REFLECT SYMMETRIC
enum ReduceWindowFunction:i32  UNSUPPORTED ADD MUL MINIMUM MAXIMUM ALL ANY
enum CustomOptionsFormat:i8  FLEXBUFFERS
enum BuiltinOperator:i32  ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D
  DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR FULLY_CONNECTED HASHTABLE_LOOKUP
  L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM
  MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF
  TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD
  UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV
  SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT
  LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG
  PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE
  EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD
  REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV
  REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU
  SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK
  ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
  NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM
  BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG
  REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL
  CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL
  BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD
  UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR
  RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY
  STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE
  STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL
  STABLEHLO_REDUCE STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL
  STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER
  STABLEHLO_REMAINDER STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH
  STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE
  STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL
  STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE
  DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT
  STABLEHLO_CBRT STABLEHLO_CASE

table CustomQuantization  custom:[u8]
table BlockwiseQuantization  scales:i32  zero_points:i32  block_size:i32  block_shape:[i32]
table MultiAxisQuantization  scales:i32  zero_points:i32  block_size:i32
  quantized_dimensions:[i32]
table QuantizationParameters  min:[f32]  max:[f32]  scale:[f32]  zero_point:[i64]
  details:QuantizationDetails  quantized_dimension:i32
table Int32Vector  values:[i32]
table Uint16Vector  values:[u16]
table Uint8Vector  values:[u8]
table DimensionMetadata  format:DimensionType  dense_size:i32  array_segments:SparseIndexVector
  array_indices:SparseIndexVector
table SparsityParameters  traversal_order:[i32]  block_map:[i32]  dim_metadata:[DimensionMetadata]
table VariantSubType  shape:[i32]  type:TensorType  has_rank:bool
table Tensor  shape:[i32]  type:TensorType  buffer:u32  name:str
  quantization:QuantizationParameters  is_variable:bool  sparsity:SparsityParameters
  shape_signature:[i32]  has_rank:bool  variant_tensors:[VariantSubType]  external_buffer:u32
table StablehloGatherOptions  offset_dims:[i64]  collapsed_slice_dims:[i64]  start_index_map:[i64]
  index_vector_dim:i64  slice_sizes:[i64]  indices_are_sorted:bool
table StablehloTransposeOptions  permutation:[i64]
table StablehloDotGeneralOptions  lhs_batching_dimensions:[i64]  rhs_batching_dimensions:[i64]
  lhs_contracting_dimensions:[i64]  rhs_contracting_dimensions:[i64]
  precision_config:[StablehloPrecisionConfig]
table StablehloReduceWindowOptions  window_dimensions:[i64]  window_strides:[i64]
  base_dilations:[i64]  window_dilations:[i64]  padding:[i64]  body_subgraph_index:i32
table StablehloWhileOptions  cond_subgraph_index:i32  body_subgraph_index:i32
table StablehloSortOptions  dimension:i64  is_stable:bool  comparator_subgraph_index:i32
table StablehloConcatenateOptions  dimension:i64
table StablehloBroadcastInDimOptions  broadcast_dimensions:[i64]
table StablehloCompareOptions  comparison_direction:StablehloComparisonDirection
  compare_type:StablehloComparisonType
table StablehloDynamicSliceOptions  slice_sizes:[i64]
table StablehloPadOptions  edge_padding_low:[i64]  edge_padding_high:[i64]  interior_padding:[i64]
table StablehloIotaOptions  iota_dimension:i64
table StablehloCustomCallOptions  call_target_name:str  has_side_effect:bool  backend_config:str
  api_version:i32  called_computations:[i32]  custom_attributes:[u8]
table StablehloReduceOptions  dimensions:[i64]  body_subgraph_index:i32
table StablehloSliceOptions  start_indices:[i64]  limit_indices:[i64]  strides:[i64]
table StablehloConvolutionOptions  window_strides:[i64]  padding:[i64]  lhs_dilation:[i64]
  rhs_dilation:[i64]  window_reversal:[bool]  input_batch_dimension:i64
  input_feature_dimension:i64  input_spatial_dimensions:[i64]  kernel_input_feature_dimension:i64
  kernel_output_feature_dimension:i64  kernel_spatial_dimensions:[i64]  output_batch_dimension:i64
  output_feature_dimension:i64  output_spatial_dimensions:[i64]  feature_group_count:i64
  batch_group_count:i64  precision_config:[StablehloPrecisionConfig]
table StablehloScatterOptions  indices_are_sorted:bool  update_window_dims:[i64]
  inserted_window_dims:[i64]  scatter_dims_to_operand_dims:[i64]  index_vector_dim:i64
  unique_indices:bool  update_computation_subgraph_index:i32
table StablehloCaseOptions  branch_subgraph_indices:[i32]
table StablehloRngBitGeneratorOptions  algorithm:RngAlgorithm
table Conv2DOptions  padding:Padding  stride_w:i32  stride_h:i32
  activation:ActivationFunctionType  dilation_w_factor:i32=1  dilation_h_factor:i32=1
  quantized_bias_type:TensorType
table Conv3DOptions  padding:Padding  stride_d:i32  stride_w:i32  stride_h:i32
  activation:ActivationFunctionType  dilation_d_factor:i32=1  dilation_w_factor:i32=1
  dilation_h_factor:i32=1
table Pool2DOptions  padding:Padding  stride_w:i32  stride_h:i32  filter_width:i32
  filter_height:i32  activation:ActivationFunctionType
table DepthwiseConv2DOptions  padding:Padding  stride_w:i32  stride_h:i32  depth_multiplier:i32
  activation:ActivationFunctionType  dilation_w_factor:i32=1  dilation_h_factor:i32=1
table ConcatEmbeddingsOptions  num_channels:i32  num_columns_per_channel:[i32]
  embedding_dim_per_channel:[i32]
table LSHProjectionOptions  type:LSHProjectionType
table SVDFOptions  rank:i32  activation:ActivationFunctionType  asymmetric_quantize_inputs:bool
table RNNOptions  activation:ActivationFunctionType  asymmetric_quantize_inputs:bool
table SequenceRNNOptions  time_major:bool  activation:ActivationFunctionType
  asymmetric_quantize_inputs:bool
table BidirectionalSequenceRNNOptions  time_major:bool  activation:ActivationFunctionType
  merge_outputs:bool  asymmetric_quantize_inputs:bool
table FullyConnectedOptions  activation:ActivationFunctionType
  weights_format:FullyConnectedOptionsWeightsFormat  keep_num_dims:bool
  asymmetric_quantize_inputs:bool  quantized_bias_type:TensorType  quant_spec:[u8]
table SoftmaxOptions  beta:f32
table ConcatenationOptions  axis:i32  activation:ActivationFunctionType
table AddOptions  activation:ActivationFunctionType  pot_scale_int16:bool=true
table MulOptions  activation:ActivationFunctionType
table L2NormOptions  activation:ActivationFunctionType
table LocalResponseNormalizationOptions  radius:i32  bias:f32  alpha:f32  beta:f32
table LSTMOptions  activation:ActivationFunctionType  cell_clip:f32  proj_clip:f32
  kernel_type:LSTMKernelType  asymmetric_quantize_inputs:bool
table UnidirectionalSequenceLSTMOptions  activation:ActivationFunctionType  cell_clip:f32
  proj_clip:f32  time_major:bool  asymmetric_quantize_inputs:bool  diagonal_recurrent_tensors:bool
table BidirectionalSequenceLSTMOptions  activation:ActivationFunctionType  cell_clip:f32
  proj_clip:f32  merge_outputs:bool  time_major:bool=true  asymmetric_quantize_inputs:bool
table ResizeBilinearOptions  -  -  align_corners:bool  half_pixel_centers:bool
table ResizeNearestNeighborOptions  align_corners:bool  half_pixel_centers:bool
table CallOptions  subgraph:u32
table PadOptions
table PadV2Options
table ReshapeOptions  new_shape:[i32]
table SpaceToBatchNDOptions
table BatchToSpaceNDOptions
table SkipGramOptions  ngram_size:i32  max_skip_size:i32  include_all_ngrams:bool
table SpaceToDepthOptions  block_size:i32
table DepthToSpaceOptions  block_size:i32
table SubOptions  activation:ActivationFunctionType  pot_scale_int16:bool=true
table DivOptions  activation:ActivationFunctionType
table TopKV2Options
table EmbeddingLookupSparseOptions  combiner:CombinerType
table GatherOptions  axis:i32  batch_dims:i32
table TransposeOptions
table ExpOptions
table CosOptions
table ReducerOptions  keep_dims:bool
table SqueezeOptions  squeeze_dims:[i32]
table SplitOptions  num_splits:i32
table SplitVOptions  num_splits:i32
table StridedSliceOptions  begin_mask:i32  end_mask:i32  ellipsis_mask:i32  new_axis_mask:i32
  shrink_axis_mask:i32  offset:bool
table LogSoftmaxOptions
table CastOptions  in_data_type:TensorType  out_data_type:TensorType
table DequantizeOptions
table MaximumMinimumOptions
table TileOptions
table ArgMaxOptions  output_type:TensorType
table ArgMinOptions  output_type:TensorType
table GreaterOptions
table GreaterEqualOptions
table LessOptions
table LessEqualOptions
table NegOptions
table SelectOptions
table SliceOptions
table TransposeConvOptions  padding:Padding  stride_w:i32  stride_h:i32
  activation:ActivationFunctionType  quantized_bias_type:TensorType
table ExpandDimsOptions
table SparseToDenseOptions  validate_indices:bool
table EqualOptions
table NotEqualOptions
table ShapeOptions  out_type:TensorType
table RankOptions
table PowOptions
table FakeQuantOptions  min:f32  max:f32  num_bits:i32  narrow_range:bool
table PackOptions  values_count:i32  axis:i32
table LogicalOrOptions
table OneHotOptions  axis:i32
table AbsOptions
table HardSwishOptions
table LogicalAndOptions
table LogicalNotOptions
table UnpackOptions  num:i32  axis:i32
table FloorDivOptions
table SquareOptions
table ZerosLikeOptions
table FillOptions
table FloorModOptions
table RangeOptions
table LeakyReluOptions  alpha:f32
table SquaredDifferenceOptions
table MirrorPadOptions  mode:MirrorPadMode
table UniqueOptions  idx_out_type:TensorType=2
table ReverseV2Options
table AddNOptions
table GatherNdOptions
table WhereOptions
table ReverseSequenceOptions  seq_dim:i32  batch_dim:i32
table MatrixDiagOptions
table QuantizeOptions
table MatrixSetDiagOptions
table IfOptions  then_subgraph_index:i32  else_subgraph_index:i32
table CallOnceOptions  init_subgraph_index:i32
table WhileOptions  cond_subgraph_index:i32  body_subgraph_index:i32
table NonMaxSuppressionV4Options
table NonMaxSuppressionV5Options
table ScatterNdOptions
table SelectV2Options
table DensifyOptions
table SegmentSumOptions
table BatchMatMulOptions  adj_x:bool  adj_y:bool  asymmetric_quantize_inputs:bool
table CumsumOptions  exclusive:bool  reverse:bool
table BroadcastToOptions
table Rfft2dOptions
table HashtableOptions  table_id:i32  key_dtype:TensorType  value_dtype:TensorType
table HashtableFindOptions
table HashtableImportOptions
table HashtableSizeOptions
table VarHandleOptions  container:str  shared_name:str
table ReadVariableOptions
table AssignVariableOptions
table RandomOptions  seed:i64  seed2:i64
table BucketizeOptions  boundaries:[f32]
table GeluOptions  approximate:bool
table DynamicUpdateSliceOptions
table UnsortedSegmentProdOptions
table UnsortedSegmentMaxOptions
table UnsortedSegmentSumOptions
table ATan2Options
table UnsortedSegmentMinOptions
table SignOptions
table BitcastOptions
table BitwiseXorOptions
table RightShiftOptions
table DilateOptions
table ReduceWindowOptions  reduce_function:ReduceWindowFunction
table OperatorCode  deprecated_builtin_code:i8  custom_code:str  version:i32=1  builtin_code:i32
table StableHLOCompositeOptions  name:str  decomposition_subgraph_index:i32
  composite_attributes:[u8]  composite_attributes_format:CustomOptionsFormat  version:i32
table StablehloShiftLeftOptions
table Operator  opcode_index:u32  inputs:[i32]  outputs:[i32]  builtin_options:BuiltinOptions
  custom_options:[u8]  custom_options_format:CustomOptionsFormat  mutating_variable_inputs:[bool]
  intermediates:[i32]  large_custom_options_offset:u64  large_custom_options_size:u64
  builtin_options2:BuiltinOptions2  debug_metadata_index:i32=-1
table SubGraph  tensors:[Tensor]  inputs:[i32]  outputs:[i32]  operators:[Operator]  name:str
  debug_metadata_index:i32=-1
table Buffer  data:[u8]  offset:u64  size:u64
table ExternalBufferGroup  name:str
table ExternalBuffer  id:u32  group:u32  offset:u64  length:u64  packing:str
table Metadata  name:str  buffer:u32
table TensorMap  name:str  tensor_index:u32
table SignatureDef  inputs:[TensorMap]  outputs:[TensorMap]  signature_key:str  -
  subgraph_index:u32
table Model  version:u32  operator_codes:[OperatorCode]  subgraphs:[SubGraph]  description:str
  buffers:[Buffer]  metadata_buffer:[i32]  metadata:[Metadata]  signature_defs:[SignatureDef]
  external_buffer_groups:[ExternalBufferGroup]  external_buffers:[ExternalBuffer]
""")

# An operator's number is its place in this list.
OPERATORS: Final = SCHEMA.enums["BuiltinOperator"]
