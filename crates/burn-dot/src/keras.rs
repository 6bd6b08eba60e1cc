//! Keras interchange: `DotConfig` as the dictionary of `get_config()`, and as a serialised layer.

use alloc::{format, string::String, vec::Vec};

use burn_core::tensor::FloatDType;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error, ser::SerializeStruct};

use crate::{DotConfig, plan::Axes};

/// A [`DotConfig`] written as Keras serialises a layer: `{"module": …, "class_name": "Dot", "config": {…}, …}`.
///
/// `DotConfig` itself writes the dictionary of Keras' `get_config()`, and reads both forms. Keys it does not know, such as
/// `name`, `trainable` or `dtype`, are accepted and dropped.
///
/// # Differences from Keras
///
/// The options that Keras does not have (`epsilon`, `batch_dims`, `broadcast_batch`, `output_dtype`, several pairs in `axes`)
/// are further keys, left out where they hold their defaults, so Keras reads a configuration that uses only its own. A
/// configuration of Keras 3 says nothing of its floor of 1e-7: call [`with_epsilon(1e-7)`](DotConfig::with_epsilon) to match it.
///
/// # Source
///
/// `keras.layers.serialize` and `Layer.get_config` of tf.keras 2 and Keras 3.
///
/// ```
/// use burn_dot::{DotConfig, KerasLayer};
///
/// let from_keras = r#"{"class_name": "Dot", "config": {"name": "dot", "axes": [1, 2], "normalize": false}}"#;
/// let config: DotConfig = serde_json::from_str(from_keras)?;
/// assert_eq!(config, DotConfig::new((1, 2)));
///
/// assert_eq!(serde_json::to_string(&config)?, r#"{"axes":[1,2],"normalize":false}"#);
/// assert_eq!(
///     serde_json::to_string(&KerasLayer(config))?,
///     r#"{"module":"keras.layers","class_name":"Dot","config":{"axes":[1,2],"normalize":false},"registered_name":null}"#
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct KerasLayer(pub DotConfig);

impl Serialize for KerasLayer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut layer = serializer.serialize_struct("KerasLayer", 4)?;
        layer.serialize_field("module", "keras.layers")?;
        layer.serialize_field("class_name", "Dot")?;
        layer.serialize_field("config", &self.0)?;
        layer.serialize_field("registered_name", &None::<()>)?;
        layer.end()
    }
}

impl<'de> Deserialize<'de> for KerasLayer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DotConfig::deserialize(deserializer).map(KerasLayer)
    }
}

/// The dictionary of `get_config()`, with our own options as further keys.
#[derive(Serialize, Deserialize)]
struct Dictionary {
    axes: Axes,
    #[serde(default)]
    normalize: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epsilon: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch_dims: Option<usize>,
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    broadcast_batch: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output_dtype: Option<FloatDType>,
}

impl Serialize for DotConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Dictionary {
            axes: self.axes.clone(),
            normalize: self.normalize,
            epsilon: (self.epsilon != DotConfig::DEFAULT_EPSILON).then_some(self.epsilon),
            batch_dims: (self.batch_dims != 1).then_some(self.batch_dims),
            broadcast_batch: self.broadcast_batch,
            output_dtype: self.output_dtype,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DotConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = serde_json::Value::deserialize(deserializer)?;
        if let Some(class) = value.get("class_name") {
            let class: String = class.as_str().unwrap_or_default().into();
            if class != "Dot" {
                return Err(D::Error::custom(format!("this is a Keras layer {class:?}, not a \"Dot\"")));
            }
            value = value.get_mut("config").map(serde_json::Value::take).ok_or_else(|| D::Error::missing_field("config"))?;
        }
        if value.get("epsilon").is_some_and(serde_json::Value::is_null) {
            return Err(D::Error::custom("Dot: epsilon must be a number")); // An infinity or a NaN, as JSON writes it.
        }
        let dictionary = Dictionary::deserialize(value).map_err(|error| D::Error::custom(format!("Dot: {error}")))?;
        Ok(DotConfig {
            axes: dictionary.axes,
            normalize: dictionary.normalize,
            epsilon: dictionary.epsilon.unwrap_or(DotConfig::DEFAULT_EPSILON),
            batch_dims: dictionary.batch_dims.unwrap_or(1),
            broadcast_batch: dictionary.broadcast_batch,
            output_dtype: dictionary.output_dtype,
        })
    }
}

/// The forms of `axes` in JSON: `1`, `[1, 2]`, `[[1, 2], [2, 1]]`.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "axes must be an integer, a pair [1, 2], or a list of pairs [[1, 2], [2, 1]]")]
enum AxesJson {
    Both(isize),
    Pair([isize; 2]),
    Pairs(Vec<(isize, isize)>),
}

impl Serialize for Axes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Axes::Both(axis) => AxesJson::Both(*axis),
            Axes::Pair(lhs, rhs) => AxesJson::Pair([*lhs, *rhs]),
            Axes::Pairs(pairs) => AxesJson::Pairs(pairs.clone()),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match AxesJson::deserialize(deserializer)? {
            AxesJson::Both(axis) => Axes::Both(axis),
            AxesJson::Pair([lhs, rhs]) => Axes::Pair(lhs, rhs),
            AxesJson::Pairs(pairs) => Axes::Pairs(pairs),
        })
    }
}
