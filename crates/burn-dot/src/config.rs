//! [`DotConfig`]: the axes to contract, and the options of the product.

use alloc::vec::Vec;
use core::fmt;

use burn_core::config::{Config, config_to_json};
use burn_core::tensor::DType;

use crate::{axes::Axes, dot::Dot, error::DotError, plan::Pairing};

/// Configuration of a [`Dot`] layer: the axes to contract, and the options of the product.
///
/// See [`Dot`] for formula, shapes, numerics and gradient.
///
/// # Errors
///
/// [`try_init`](Self::try_init) and [`output_shape`](Self::output_shape) return a [`DotError`]; [`init`](Self::init) panics with
/// its text.
///
/// # Source
///
/// [`tf.keras.layers.Dot`](https://www.tensorflow.org/api_docs/python/tf/keras/layers/Dot), its arguments `axes` and
/// `normalize`; `eps` of torch's `CosineSimilarity`; `batch_dims` of `tf.gather`.
///
/// It saves and loads as the dictionary of Keras' `get_config()`: see [`KerasLayer`](crate::KerasLayer).
///
/// ```
/// use burn_dot::DotConfig;
///
/// let cosine = DotConfig::new((2, 1)).with_normalize(true).init();
/// assert_eq!(cosine.to_string(), "Dot {axes: (2, 1), normalize: true}");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DotConfig {
    /// The axes to contract.
    pub axes: Axes,
    /// Whether to divide each input by its norm along the contracted axes first. Default: `false`.
    pub normalize: bool,
    /// The least norm to divide by: a positive finite number. Default: 1e-6, as in tf.keras; Keras 3 has 1e-7, torch 1e-8.
    pub epsilon: f64,
    /// How many leading axes the inputs share. Default: 1.
    pub batch_dims: usize,
    /// Whether a batch axis of size 1 may be repeated to fit the other input's. Default: `false`.
    pub broadcast_batch: bool,
    /// The dtype of the output, a float for float inputs and an integer for integers. Default: that of the inputs.
    pub output_dtype: Option<DType>,
}

impl Config for DotConfig {}

impl DotConfig {
    /// The default `epsilon`: tf.keras bounds the square of a norm by 1e-12.
    pub const DEFAULT_EPSILON: f64 = 1e-6;

    /// A plain dot product along `axes`: one axis for both inputs, a pair, or several pairs. See [`Axes`].
    pub fn new(axes: impl Into<Axes>) -> Self {
        Self {
            axes: axes.into(),
            normalize: false,
            epsilon: Self::DEFAULT_EPSILON,
            batch_dims: 1,
            broadcast_batch: false,
            output_dtype: None,
        }
    }

    /// Divides each input by its norm along the contracted axes first: cosine similarity.
    pub fn with_normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        self
    }

    /// Sets the least norm to divide by; it has an effect with `normalize` only.
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets how many leading axes the inputs share: 0 pairs every row with every row, 2 shares batch and heads.
    pub fn with_batch_dims(mut self, batch_dims: usize) -> Self {
        self.batch_dims = batch_dims;
        self
    }

    /// Lets a batch axis of size 1 be repeated to fit the other input's.
    pub fn with_broadcast_batch(mut self, broadcast_batch: bool) -> Self {
        self.broadcast_batch = broadcast_batch;
        self
    }

    /// Sets the dtype of the output: scores of f16 inputs may be wanted in f32, products of i8 in i32.
    ///
    /// # Numerics
    ///
    /// The product is accumulated in a dtype at least as wide as the output's. Integers are cast to it first, so that products of i8 do
    /// not wrap in i32; the dtype must hold every value of the inputs'.
    ///
    /// ```
    /// use burn::{prelude::*, tensor::{DType, IntDType}};
    /// use burn_dot::DotConfig;
    ///
    /// let x = Tensor::<2, Int>::from_data([[100, 100]], (&Device::flex(), DType::I8));
    /// let dot = DotConfig::new(1).with_output_dtype(IntDType::I32).init();
    /// let out: Tensor<2, Int> = dot.forward(x.clone(), x);
    /// assert_eq!(out.into_scalar::<i32>(), 20_000);
    /// ```
    pub fn with_output_dtype(mut self, dtype: impl Into<DType>) -> Self {
        self.output_dtype = Some(dtype.into());
        self
    }

    /// Gives the output the dtype of the inputs again.
    pub fn without_output_dtype(mut self) -> Self {
        self.output_dtype = None;
        self
    }

    /// Makes the layer.
    ///
    /// # Panics
    ///
    /// With the text of the [`DotError`], where [`try_init`](Self::try_init) returns one.
    #[track_caller]
    pub fn init(&self) -> Dot {
        match self.try_init() {
            Ok(dot) => dot,
            Err(error) => panic!("{error}"),
        }
    }

    /// Makes the layer.
    ///
    /// # Errors
    ///
    /// [`DotError::NoAxes`] when there is nothing to contract, [`DotError::InvalidEpsilon`] when `epsilon` is not a positive
    /// finite number. Everything else depends on the inputs.
    pub fn try_init(&self) -> Result<Dot, DotError> {
        self.check()?;
        Ok(Dot { config: self.clone() })
    }

    /// The shape of the output, without tensors: `batch… · lhs free… · rhs free…`. `None` stands for an unknown size.
    ///
    /// # Shapes
    ///
    /// Free axes keep their order. Where nothing is free, `batch_dims = 1` gives `(batch, 1)` as in Keras, 0 gives `[1]`
    /// (Burn's scalar), 2 or more give the batch alone.
    ///
    /// # Errors
    ///
    /// Those of [`Dot::try_forward`] that concern axes and sizes. Unknown sizes are taken to agree.
    ///
    /// # Differences from Keras
    ///
    /// `compute_output_shape` of Keras checks no sizes.
    ///
    /// ```
    /// use burn_dot::DotConfig;
    ///
    /// let shape = DotConfig::new((3, 2)).output_shape(
    ///     &[None, Some(16), Some(32), Some(24)],
    ///     &[None, Some(12), Some(24), Some(20)],
    /// );
    /// assert_eq!(shape, Ok(vec![None, Some(16), Some(32), Some(12), Some(20)]));
    /// ```
    pub fn output_shape(&self, lhs: &[Option<usize>], rhs: &[Option<usize>]) -> Result<Vec<Option<usize>>, DotError> {
        self.check()?;
        let pairing = Pairing::new(&self.axes, self.batch_dims, self.broadcast_batch, lhs, rhs)?;
        Ok(pairing.output_shape().collect())
    }

    fn check(&self) -> Result<(), DotError> {
        match (&self.axes, self.epsilon) {
            (Axes::Pairs(pairs), _) if pairs.is_empty() => Err(DotError::NoAxes),
            (_, epsilon) if !(epsilon > 0.0 && epsilon.is_finite()) => Err(DotError::InvalidEpsilon { epsilon }),
            _ => Ok(()),
        }
    }
}

/// As Burn's configurations: the JSON that [`save`](Config::save) writes.
impl fmt::Display for DotConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&config_to_json(self))
    }
}
