//! What can be wrong with a gradient, and what it looks like, in words.

use core::fmt;

use burn_core::tensor::DType;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Failure {
    /// The backward pass disagrees with finite differences.
    Mismatch {
        /// The input or parameter.
        input: String,
        /// Where in it.
        index: Vec<usize>,
        /// What the backward pass says.
        analytic: f64,
        /// What the differences say.
        numeric: f64,
        /// How far the differences may be off.
        error_bar: f64,
    },
    /// What the mismatches of one input have in common.
    Pattern {
        /// The input or parameter.
        input: String,
        /// How many of its numbers disagree.
        mismatches: usize,
        /// Whether there may be more, not looked for.
        at_least: bool,
        /// Of how many compared.
        compared: usize,
        /// What they look like.
        hint: Hint,
    },
    /// A gradient is NaN or infinite although the differences are finite.
    NotFinite {
        /// The input or parameter.
        input: String,
        /// Where in it.
        index: Vec<usize>,
        /// The dtype of the backward pass.
        dtype: DType,
        /// NaN or an infinity.
        analytic: f64,
    },
    /// The backward pass in a lower dtype is further from that in the higher one than rounding explains.
    Precision {
        /// The input or parameter.
        input: String,
        /// Where in it.
        index: Vec<usize>,
        /// The lower dtype.
        dtype: DType,
        /// The gradient in the lower dtype.
        low: f64,
        /// The gradient in the higher dtype, at the same inputs.
        high: f64,
        /// How far they may be apart.
        allowed: f64,
    },
    /// No gradient arrived although the function changes with the input.
    Detached {
        /// The input or parameter.
        input: String,
        /// A slope that was seen.
        slope: f64,
    },
    /// A gradient has another shape than its input.
    Shape {
        /// The input or parameter.
        input: String,
        /// Its shape.
        expected: Vec<usize>,
        /// The gradient's.
        found: Vec<usize>,
    },
    /// A gradient has another dtype than its input.
    DType {
        /// The input or parameter.
        input: String,
        /// Its dtype.
        expected: DType,
        /// The gradient's.
        found: DType,
    },
    /// A cotangent of zero gave a gradient that is not zero.
    ZeroCotangent {
        /// The input or parameter.
        input: String,
        /// Where in it.
        index: Vec<usize>,
        /// The gradient.
        gradient: f64,
    },
    /// A doubled cotangent did not give twice the gradient.
    NotLinear {
        /// The input or parameter.
        input: String,
        /// Where in it.
        index: Vec<usize>,
        /// The gradient.
        once: f64,
        /// The gradient of the doubled cotangent.
        doubled: f64,
    },
    /// Two runs from the same seed gave different gradients.
    Nondeterministic {
        /// The input or parameter.
        input: String,
        /// Where in it.
        index: Vec<usize>,
        /// The first run.
        first: f64,
        /// The second run.
        second: f64,
    },
    /// The function itself gave different outputs from the same seed, so no difference means anything.
    NondeterministicForward,
    /// Inputs that lie in memory in another order gave another gradient.
    Layout {
        /// The input or parameter.
        input: String,
        /// Where in it.
        index: Vec<usize>,
        /// The gradient at contiguous inputs.
        contiguous: f64,
        /// The gradient at strided inputs.
        strided: f64,
    },
    /// Too many numbers lie on kinks for the check to mean anything.
    Kinks {
        /// The input or parameter.
        input: String,
        /// How many do.
        kinks: usize,
        /// Of how many.
        compared: usize,
    },
    /// The function gives another output when gradients are recorded.
    TrackedForward {
        /// Which number of the outputs.
        at: usize,
        /// Without gradients.
        plain: f64,
        /// With gradients.
        tracked: f64,
    },
    /// Inputs that lie in memory in another order gave another output.
    StridedForward {
        /// Which number of the outputs.
        at: usize,
        /// At contiguous inputs.
        contiguous: f64,
        /// At strided inputs.
        strided: f64,
    },
    /// The function gives NaN, and a NaN has no slope.
    NanForward,
    /// None of the numbers of a gradient can be judged by differences; the notes tell why.
    Uncertain {
        /// The input or parameter.
        input: String,
    },
    /// The function takes and gives f64, but it, or a part of it, rounds to f32 inside.
    RoundsToF32,
    /// A dtype that was asked for, or that the inputs have, could not be compared.
    NotRun {
        /// The dtype.
        dtype: DType,
        /// Why.
        reason: String,
    },
    /// Another device, or another way to run the function, gives other numbers. [`Detached`](Self::Detached), [`Shape`](Self::Shape) and
    /// [`DType`](Self::DType) name it after the input.
    Differs {
        /// The device or way, and the dtype.
        at: String,
        /// `output 0`, or the gradient of an input or parameter.
        what: String,
        /// Where in it; the number that is furthest off.
        index: Vec<usize>,
        /// What is given there.
        given: f64,
        /// What is right.
        expected: f64,
        /// How far it is off, in ε of the largest number of the tensor.
        epsilons: f64,
        /// How far it may be off.
        allowed: f64,
    },
    /// Another device, or another way to run the function, gives NaN, or an infinity where the right number is finite.
    NotFiniteThere {
        /// The device or way, and the dtype.
        at: String,
        /// `output 0`, or the gradient of an input or parameter.
        what: String,
        /// Where in it.
        index: Vec<usize>,
        /// NaN or an infinity.
        given: f64,
        /// What the reference gives; NaN where it gives that, too.
        expected: f64,
    },
    /// Another device, or another way to run the function, panics.
    Panics {
        /// The device or way, and the dtype.
        at: String,
        /// The panic's first line.
        reason: String,
    },
    /// On a device the function takes and gives f64, but it, or a part of it, rounds to f32 inside.
    RoundsThere {
        /// The device.
        at: String,
    },
    /// Every gradient and every difference is zero, or there is nothing to differentiate: the check would pass for any backward pass.
    Vacuous,
}

/// What the mismatches of an input look like.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Hint {
    /// The gradient has the wrong sign.
    SignFlipped,
    /// The gradient is a constant times what it should be.
    Factor(f64),
    /// It is the transpose, in its last two axes, of what it should be.
    Transposed,
    /// It is the gradient of another input.
    GradientOf(String),
    /// It is zero where it should not be.
    Zero,
    /// What is missing is along the input itself, as when a norm's projection is left out.
    AlongInput,
    /// One number is wrong and the others are right.
    OneElement,
    /// A term is wrong or missing.
    Term,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SignFlipped => f.write_str("the sign is flipped"),
            Self::Factor(factor) => write!(f, "it is {factor:.6} times what it should be"),
            Self::Transposed => f.write_str("it is the transpose of what it should be"),
            Self::GradientOf(other) => write!(f, "it is the gradient of {other}: are two inputs swapped?"),
            Self::Zero => f.write_str("it is zero: is a branch detached, or its gradient never registered?"),
            Self::AlongInput => {
                f.write_str("what is missing is along the input: has a norm's projection (g − u (u·g)) been left out?")
            }
            Self::OneElement => {
                f.write_str("one number is wrong and the others are right: look at the edges of a loop or an index")
            }
            Self::Term => f.write_str("no simple pattern: is a term missing, or an input read that is not the saved one?"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatch { input, index, analytic, numeric, error_bar } => {
                let off = (analytic - numeric).abs();
                let relative = off / analytic.abs().max(numeric.abs());
                write!(
                    f,
                    "{input} {index:?}: backward says {analytic:.10e}, differences say {numeric:.10e} ± {error_bar:.1e}; \
                     off by {off:.2e} ({relative:.1e} of it)"
                )
            }
            Self::Pattern { input, mismatches, at_least, compared, hint } => {
                let at_least = if *at_least { "at least " } else { "" };
                write!(f, "{input}: {at_least}{mismatches} of {compared} numbers disagree; {hint}")
            }
            Self::NotFinite { input, index, dtype, analytic } => {
                write!(f, "{input} {index:?}: the gradient in {dtype:?} is {analytic} where the differences are finite")
            }
            Self::Precision { input, index, dtype, low, high, allowed } => write!(
                f,
                "{input} {index:?}: the gradient in {dtype:?} is {low:.8e}, in the higher precision {high:.8e}; off by {:.2e}, \
                 rounding explains {allowed:.1e}: is an intermediate rounded or cancelled?",
                (low - high).abs()
            ),
            Self::Detached { input, slope } => write!(
                f,
                "{input}: no gradient arrives, but the function changes with it (a slope of {slope:.3e} was seen); \
                 is it detached, or read as data?"
            ),
            Self::Kinks { input, kinks, compared } => write!(
                f,
                "{input}: {kinks} of {compared} numbers lie on kinks, where no derivative exists; choose other inputs, \
                 or set max_kinks"
            ),
            Self::Uncertain { input } => write!(
                f,
                "{input} cannot be judged: its gradient is too small for differences to tell from zero, or they converge nowhere; \
                 scale the function, or choose other inputs"
            ),
            Self::Vacuous => {
                f.write_str("every gradient is zero, so any backward pass would pass; choose inputs where the function changes")
            }
            Self::NotRun { dtype, reason } => write!(f, "{dtype:?} could not be compared: {reason}"),
            Self::Shape { input, expected, found } => {
                write!(f, "{input}: its shape is {expected:?}, but its gradient's is {found:?}")
            }
            Self::DType { input, expected, found } => {
                write!(f, "{input}: its dtype is {expected:?}, but its gradient's is {found:?}; cast the gradient back")
            }
            Self::ZeroCotangent { input, index, gradient } => {
                write!(f, "{input} {index:?}: a cotangent of zero gives a gradient of {gradient:e}; a backward pass is linear")
            }
            Self::NotLinear { input, index, once, doubled } => {
                write!(
                    f,
                    "{input} {index:?}: twice the cotangent gives {doubled:e}, not twice {once:e}; a backward pass is linear"
                )
            }
            Self::Nondeterministic { input, index, first, second } => {
                write!(
                    f,
                    "{input} {index:?}: two runs give {first:e} and {second:e}; set nondeterminism_tolerance if that is meant"
                )
            }
            Self::NondeterministicForward => f.write_str(
                "the function gives different outputs from the same seed; draw its randomness from the device, which is seeded \
                 before each evaluation",
            ),
            Self::Layout { input, index, contiguous, strided } => write!(
                f,
                "{input} {index:?}: strided inputs give {strided:.8e}, contiguous ones {contiguous:.8e}; are strides ignored?"
            ),
            Self::TrackedForward { at, plain, tracked } => write!(
                f,
                "output {at} is {plain:e}, but {tracked:e} when gradients are recorded; do both paths compute the same?"
            ),
            Self::StridedForward { at, contiguous, strided } => {
                write!(f, "output {at} is {contiguous:e}, but {strided:e} at strided inputs; are strides ignored?")
            }
            Self::Differs { at, what, index, given, expected, epsilons, allowed } => write!(
                f,
                "{at}: {what} {index:?} is {given:.8e}, not {expected:.8e}; off by {epsilons:.1e} ε of the largest, {allowed:.1e} are \
                 explained"
            ),
            Self::NotFiniteThere { at, what, index, given, expected } if expected.is_nan() => {
                write!(f, "{at}: {what} {index:?} is {given}, as it is for the reference")
            }
            Self::NotFiniteThere { at, what, index, given, expected } => {
                write!(f, "{at}: {what} {index:?} is {given}, not {expected:.8e}")
            }
            Self::Panics { at, reason } => write!(f, "{at}: the function panics: {reason}"),
            Self::RoundsThere { at } => {
                write!(f, "{at}: the function takes and gives f64, but it, or a part of it, feels no change that f32 cannot hold: it rounds to f32 inside")
            }
            Self::NanForward => f.write_str("the function gives NaN at these inputs; choose others"),
            Self::RoundsToF32 => f.write_str(
                "the function takes f64 and gives f64, but it, or a part of it, feels no change of the inputs that f32 cannot hold: it rounds to \
                 f32 inside",
            ),
        }
    }
}
