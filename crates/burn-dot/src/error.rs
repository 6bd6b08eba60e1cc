//! [`DotError`]: everything that can be wrong with an input, with the whole message.

use alloc::{string::String, vec::Vec};
use core::fmt;

use burn_core::tensor::DType;

/// Which of the two inputs is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The first input.
    Lhs,
    /// The second input.
    Rhs,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operand::Lhs => "lhs",
            Operand::Rhs => "rhs",
        })
    }
}

/// An axis as the user wrote it and as it was resolved; shown as `1` or `-1 (= 2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// As written; negative counts from the end.
    pub written: isize,
    /// Counted from the front.
    pub index: usize,
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.written)?;
        if self.written < 0 {
            write!(f, " (= {})", self.index)?;
        }
        Ok(())
    }
}

/// Both input shapes; shown as `lhs [2, 3, 5], rhs [2, 10, ?]` with `?` for an unknown size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// Sizes of the first input.
    pub lhs: Vec<Option<usize>>,
    /// Sizes of the second input.
    pub rhs: Vec<Option<usize>>,
}

impl Shapes {
    pub(crate) fn known(lhs: &[usize], rhs: &[usize]) -> Self {
        let known = |sizes: &[usize]| sizes.iter().map(|&size| Some(size)).collect();
        Shapes { lhs: known(lhs), rhs: known(rhs) }
    }
}

impl fmt::Display for Shapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lhs, rhs) = (Sizes(&self.lhs), Sizes(&self.rhs));
        write!(f, "lhs {lhs}, rhs {rhs}")
    }
}

struct Sizes<'a>(&'a [Option<usize>]);

impl fmt::Display for Sizes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, size) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match size {
                Some(size) => write!(f, "{size}")?,
                None => f.write_str("?")?,
            }
        }
        f.write_str("]")
    }
}

/// What was wrong with the inputs of a [`Dot`](crate::Dot).
///
/// Every error is found before any arithmetic. The text names the operand, the axis as written and as resolved, both sizes,
/// both shapes, and a fix where one exists.
///
/// ```
/// use burn_dot::DotConfig;
///
/// let error = DotConfig::new((1, -1)).output_shape(&[Some(2), Some(3), Some(5)], &[Some(2), Some(10), Some(4)]);
/// assert_eq!(
///     error.unwrap_err().to_string(),
///     "Dot: lhs axis 1 has size 3 but rhs axis -1 (= 2) has size 4; lhs [2, 3, 5], rhs [2, 10, 4]"
/// );
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DotError {
    /// The list of axis pairs is empty.
    NoAxes,
    /// An input has too few dimensions to hold the batch and an axis to contract.
    RankTooSmall {
        /// The input.
        operand: Operand,
        /// How many leading axes are shared.
        batch_dims: usize,
        /// Both shapes.
        shapes: Shapes,
    },
    /// An axis points outside its input.
    AxisOutOfRange {
        /// The input.
        operand: Operand,
        /// The axis as written.
        axis: isize,
        /// Both shapes.
        shapes: Shapes,
    },
    /// A shared leading axis cannot also be contracted.
    BatchAxis {
        /// The input.
        operand: Operand,
        /// The axis.
        axis: Axis,
        /// How many leading axes are shared.
        batch_dims: usize,
        /// Both shapes.
        shapes: Shapes,
    },
    /// Two pairs name the same axis of one input.
    DuplicateAxis {
        /// The input.
        operand: Operand,
        /// Where it stood first.
        first: Axis,
        /// Where it stood again.
        again: Axis,
        /// Both shapes.
        shapes: Shapes,
    },
    /// A contracted pair has two different sizes. A size of 1 is no exception.
    SizeMismatch {
        /// Axis of the first input.
        lhs_axis: Axis,
        /// Its size.
        lhs_size: usize,
        /// Axis of the second input.
        rhs_axis: Axis,
        /// Its size.
        rhs_size: usize,
        /// The only other pair of axes whose sizes agree, if there is one.
        candidate: Option<(usize, usize)>,
        /// Both shapes.
        shapes: Shapes,
    },
    /// A shared leading axis has two different sizes.
    BatchMismatch {
        /// The axis, the same in both inputs.
        axis: usize,
        /// Size in the first input.
        lhs_size: usize,
        /// Size in the second input.
        rhs_size: usize,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The caller's tensor type has another rank than the output.
    OutputRank {
        /// The rank of the caller's type.
        expected: usize,
        /// The shape of the output.
        output: Vec<usize>,
        /// Both shapes.
        shapes: Shapes,
    },
    /// An input has more elements than `isize` can count. Axes of size 0 are left out.
    InputTooLarge {
        /// The input.
        operand: Operand,
        /// Its shape, with the batch of the output.
        shape: Vec<usize>,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The output would have more elements than memory can address. Axes of size 0 are left out.
    OutputTooLarge {
        /// The shape of the output.
        output: Vec<usize>,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The inputs have different dtypes.
    DTypeMismatch {
        /// Dtype of the first input.
        lhs: DType,
        /// Dtype of the second input.
        rhs: DType,
        /// Both shapes.
        shapes: Shapes,
    },
    /// An input is quantized.
    Quantized {
        /// The input.
        operand: Operand,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The inputs live on different devices.
    DeviceMismatch {
        /// Device of the first input.
        lhs: String,
        /// Device of the second input.
        rhs: String,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The inputs record their gradients under different checkpointing strategies.
    CheckpointingMismatch {
        /// Both shapes.
        shapes: Shapes,
    },
    /// `normalize` was asked of integers.
    NormalizeIntegers {
        /// The integer dtype.
        dtype: DType,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The output dtype is of another kind than the inputs: an integer for floats, a float for integers, or neither of them.
    OutputDTypeKind {
        /// Dtype of the inputs.
        input: DType,
        /// The dtype asked for.
        output: DType,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The output dtype cannot hold every value of the inputs' dtype.
    OutputDTypeTooNarrow {
        /// Dtype of the inputs.
        input: DType,
        /// The dtype asked for.
        output: DType,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The device cannot hold the dtype asked for the output.
    UnsupportedOutputDType {
        /// The dtype asked for.
        dtype: DType,
        /// The device.
        device: String,
        /// Both shapes.
        shapes: Shapes,
    },
    /// This crate was built without the feature of the inputs' backend, or of autodiff.
    MissingFeature {
        /// The device.
        device: String,
        /// The feature to add, or a choice of features.
        feature: &'static str,
        /// Both shapes.
        shapes: Shapes,
    },
    /// The epsilon is zero, negative, infinite or NaN.
    InvalidEpsilon {
        /// The value given.
        epsilon: f64,
    },
    /// The JSON is not that of a Keras model, or a layer in it means something else than a [`Dot`](crate::Dot).
    KerasModel {
        /// The layer, as [`dots_of`](crate::dots_of) names it; `None` for the model itself.
        layer: Option<String>,
        /// What is wrong with it.
        problem: String,
    },
}

impl core::error::Error for DotError {}

impl fmt::Display for DotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dot: ")?;
        match self {
            Self::NoAxes => f.write_str("no axes to contract; name at least one pair, such as DotConfig::new((1, 2))"),
            Self::RankTooSmall { operand, batch_dims, shapes } => {
                let rank = rank(operand, shapes);
                let least = batch_dims.saturating_add(1);
                write!(
                    f,
                    "{operand} has rank {rank} but needs at least {least}: batch_dims = {batch_dims} shared axes and one to \
                     contract; unsqueeze it, or set a smaller batch_dims; {shapes}"
                )
            }
            Self::AxisOutOfRange { operand, axis, shapes } => {
                let rank = rank(operand, shapes);
                write!(
                    f,
                    "{operand} axis {axis} is out of range for rank {rank}; write -{rank} to {}; {shapes}",
                    rank.saturating_sub(1)
                )
            }
            Self::BatchAxis { operand, axis, batch_dims, shapes } => write!(
                f,
                "{operand} axis {axis} is a batch axis (batch_dims = {batch_dims}) and cannot be contracted; \
                 contract axis {batch_dims} or a later one, or set a smaller batch_dims; {shapes}"
            ),
            Self::DuplicateAxis { operand, first, again, shapes } => {
                write!(f, "{operand} axis {again} is contracted twice, first as {first}; name each axis once; {shapes}")
            }
            Self::SizeMismatch { lhs_axis, lhs_size, rhs_axis, rhs_size, candidate, shapes } => {
                write!(f, "lhs axis {lhs_axis} has size {lhs_size} but rhs axis {rhs_axis} has size {rhs_size}; {shapes}")?;
                match candidate {
                    Some((lhs, rhs)) => write!(f, "; axes ({lhs}, {rhs}) would agree"),
                    None => Ok(()),
                }
            }
            Self::BatchMismatch { axis, lhs_size, rhs_size, shapes } => {
                write!(f, "lhs batch axis {axis} has size {lhs_size} but rhs batch axis {axis} has size {rhs_size}; {shapes}")?;
                match (lhs_size, rhs_size) {
                    (1, _) | (_, 1) => f.write_str("; to repeat a batch of 1, set with_broadcast_batch(true)"),
                    _ => write!(f, "; to multiply all of lhs with all of rhs from this axis on, set with_batch_dims({axis})"),
                }
            }
            Self::OutputRank { expected, output, shapes } => {
                let rank = output.len();
                write!(
                    f,
                    "the output {output:?} has rank {rank} but the caller asks for rank {expected}; write Tensor<{rank}>; {shapes}"
                )
            }
            Self::InputTooLarge { operand, shape, shapes } => {
                write!(f, "{operand} has too many elements to count in isize, as {shape:?}; multiply slices of it; {shapes}")
            }
            Self::OutputTooLarge { output, shapes } => write!(
                f,
                "the output {output:?} has more elements than memory can address; multiply slices of the inputs; {shapes}"
            ),
            Self::DTypeMismatch { lhs, rhs, shapes } => {
                write!(f, "lhs is {lhs:?} but rhs is {rhs:?}; cast one of them, as in rhs.cast(lhs.dtype()); {shapes}")
            }
            Self::Quantized { operand, shapes } => {
                write!(f, "{operand} is quantized; call dequantize() on it first; {shapes}")
            }
            Self::DeviceMismatch { lhs, rhs, shapes } => {
                write!(f, "lhs is on {lhs} but rhs is on {rhs}; move one of them, as in rhs.to_device(&lhs.device()); {shapes}")
            }
            Self::CheckpointingMismatch { shapes } => write!(
                f,
                "lhs and rhs record gradients under different checkpointing strategies; \
                 create both on one device, or set one of them with with_gradient_checkpointing_strategy; {shapes}"
            ),
            Self::NormalizeIntegers { dtype, shapes } => write!(
                f,
                "normalize needs float inputs but these are {dtype:?}; call .float() on both, or leave normalize off; {shapes}"
            ),
            Self::OutputDTypeKind { input, output, shapes } if input.is_float() => write!(
                f,
                "the inputs are {input:?}, so the output dtype must be a float, not {output:?}; choose a float, or call .int() on \
                 both inputs; {shapes}"
            ),
            Self::OutputDTypeKind { input, output, shapes } => write!(
                f,
                "the inputs are {input:?}, so the output dtype must be an integer, not {output:?}; choose an integer, or call \
                 .float() on both inputs; {shapes}"
            ),
            Self::OutputDTypeTooNarrow { input, output, shapes } => write!(
                f,
                "the output dtype {output:?} cannot hold every value of {input:?} inputs; choose a wider one, or cast the output instead; {shapes}"
            ),
            Self::UnsupportedOutputDType { dtype, device, shapes } => write!(
                f,
                "the output dtype {dtype:?} is not supported on {device}; choose another with with_output_dtype; {shapes}"
            ),
            Self::MissingFeature { device, feature, shapes } => write!(
                f,
                "burn-dot was built without the feature for {device}; add {feature} to its features in Cargo.toml; {shapes}"
            ),
            Self::InvalidEpsilon { epsilon } => {
                write!(f, "epsilon is {epsilon}; the least norm to divide by must be a positive finite number, such as 1e-6")
            }
            Self::KerasModel { layer: Some(layer), problem } => write!(f, "layer \"{layer}\": {problem}"),
            Self::KerasModel { layer: None, problem } => f.write_str(problem),
        }
    }
}

fn rank(operand: &Operand, shapes: &Shapes) -> usize {
    match operand {
        Operand::Lhs => shapes.lhs.len(),
        Operand::Rhs => shapes.rhs.len(),
    }
}
