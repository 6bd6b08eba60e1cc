//! Keras interchange: `DotConfig` as the dictionary of `get_config()`, and as a serialised layer; every `Dot` of a model.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use burn_core::tensor::DType;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error},
    ser::SerializeStruct,
};
use serde_json::{Map, Value};

use crate::{DotConfig, DotError, axes::Axes};

/// A [`DotConfig`] written as Keras serialises a layer: `{"module": …, "class_name": "Dot", "config": {…}, …}`.
///
/// `DotConfig` itself writes the dictionary of Keras' `get_config()`, and reads both forms. A tuple may be written as TensorFlow's
/// SavedModel does, `{"class_name": "__tuple__", "items": [1, 2]}`. What else the versions of Keras write about a layer is read and
/// dropped:
///
/// - in the dictionary: `name`, `trainable`, `dtype`, `dynamic`, `autocast`, `activity_regularizer`, `batch_input_shape`, `batch_shape`,
///   `input_shape`, `input_dim`, `batch_size`, `sparse`, `ragged`;
/// - in the layer: `module`, `registered_name`, `build_config`, `compile_config`, `shared_object_id`, `name`, `inbound_nodes`, and those
///   of SavedModel's metadata.
///
/// # Errors
///
/// Any other key is an error that names the nearest known one: a misspelt `normalise` would be a plain product otherwise.
///
/// # Differences from Keras
///
/// The options that Keras does not have (`epsilon`, `batch_dims`, `broadcast_batch`, `output_dtype`, several pairs in `axes`)
/// are further keys, left out where they hold their defaults, so Keras reads a configuration that uses only its own. A
/// configuration of Keras 3 says nothing of its epsilon of 1e-7: call [`with_epsilon(1e-7)`](DotConfig::with_epsilon) to match it.
/// Written again, that configuration has a key `epsilon`, which Keras refuses.
///
/// Keras casts the inputs of a layer to its `dtype`. Here they keep theirs: cast them, or choose the output's by
/// [`with_output_dtype`](DotConfig::with_output_dtype).
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

/// The configurations of every `Dot` in a Keras model, each with the name of its layer.
///
/// `json` is what `model.to_json()` gives, the `config.json` in a `.keras` file, or the attribute `model_config` of an `.h5` file.
/// Functional and Sequential models are read, models within models, layers within wrappers (`TimeDistributed`), the layers that a
/// subclass serialises in its `get_config()`, and each JSON of a SavedModel's metadata. Lists keep their order; where a subclass has a
/// dictionary of layers, they come by its keys.
///
/// A layer within another model is named by both: `"tower/dot"`. The outermost model's own name is left out.
///
/// # Numerics
///
/// Where the JSON says `"keras_version": "3.…"` beside the model, `epsilon` of a cosine is Keras 3's 1e-7, else tf.keras' 1e-6. Keras 3
/// itself writes its version into another file: add it, or call [`with_epsilon(1e-7)`](DotConfig::with_epsilon).
///
/// # Errors
///
/// A [`DotError::KerasModel`] for text that is not JSON, JSON without a layer, a `Dot` with a key or value that [`KerasLayer`] refuses,
/// and a `Merge` of Keras 1 in mode `dot` or `cos`, which may mean another product. A layer called `Dot` that is not Keras' own is
/// passed over, as is any other layer.
///
/// # Differences from Keras
///
/// Keras 1's `Merge` in mode `dot` is this product for inputs of rank 2 and 3 only. In mode `cos` it divided by the product of both
/// norms, at least 1e-7, and put an axis of size 1 after the batch.
///
/// # Source
///
/// `Model.to_json` of tf.keras 2 and Keras 3, `Merge` of Keras 1.2.2.
///
/// ```
/// use burn_dot::{DotConfig, dots_of};
///
/// let model = r#"{"class_name": "Functional", "config": {"name": "two_tower", "layers": [
///     {"class_name": "Dense", "config": {"name": "user", "units": 8}},
///     {"class_name": "Dot", "config": {"name": "score", "axes": -1, "normalize": true}}
/// ]}, "keras_version": "2.21.0"}"#;
/// let cosine = DotConfig::new(-1).with_normalize(true);
/// assert_eq!(dots_of(model)?, [("score".to_string(), cosine)]);
/// # Ok::<(), burn_dot::DotError>(())
/// ```
pub fn dots_of(json: &str) -> Result<Vec<(String, DotConfig)>, DotError> {
    let about_the_model = |problem| DotError::KerasModel { layer: None, problem };
    let model: Value = serde_json::from_str(json).map_err(|error| about_the_model(format!("this is not JSON: {error}")))?;
    let is_keras_3 = model.get("keras_version").and_then(Value::as_str).is_some_and(|version| version.starts_with("3."));
    let epsilon = if is_keras_3 { 1e-7 } else { DotConfig::DEFAULT_EPSILON };
    let mut dots = Vec::new();
    if collect_dots(&model, None, epsilon, &mut dots)? == 0 {
        return Err(about_the_model(
            "this is not a Keras model: no layer in it has a class_name; write model.to_json()".into(),
        ));
    }
    Ok(dots)
}

/// Appends every `Dot` in `value`, and counts the layers. `path` names the layer that `value` belongs to, `None` outside of all. A cosine
/// that names no epsilon has this one.
fn collect_dots(
    value: &Value,
    path: Option<&str>,
    epsilon: f64,
    dots: &mut Vec<(String, DotConfig)>,
) -> Result<usize, DotError> {
    let mut collect_all = |values: &mut dyn Iterator<Item = &Value>, path: Option<&str>| {
        values.map(|value| collect_dots(value, path, epsilon, dots)).sum::<Result<usize, DotError>>()
    };
    match value {
        Value::Array(items) => collect_all(&mut items.iter(), path.or(Some(""))),
        // A dictionary, or a tuple: what stands in it belongs to the same layer.
        Value::Object(entries) if !entries.contains_key("class_name") || entries.contains_key("items") => {
            collect_all(&mut entries.values(), path.or(Some("")))
        }
        Value::Object(entries) => {
            let class = entries["class_name"].as_str().unwrap_or_default();
            let config = entries.get("config").unwrap_or(&Value::Null);
            let name = [config, value].iter().find_map(|at| at.get("name")?.as_str()).unwrap_or(class);
            let named = match path {
                None | Some("") => name.to_string(),
                Some(path) => format!("{path}/{name}"),
            };
            let about_the_layer = |problem| DotError::KerasModel { layer: Some(named.clone()), problem };
            match class {
                "Dot" if refuse_foreign(entries).is_ok() => {
                    let mut dot = read(value.clone()).map_err(about_the_layer)?;
                    if dot.normalize && config.get("epsilon").is_none() {
                        dot.epsilon = epsilon;
                    }
                    dots.push((named, dot));
                    Ok(1)
                }
                _ => {
                    refuse_merge(class, config).map_err(about_the_layer)?;
                    // Beside `config` a layer may stand again, as a model does in the metadata of a SavedModel.
                    Ok(1 + collect_all(&mut core::iter::once(config), Some(if path.is_none() { "" } else { &named }))?)
                }
            }
        }
        _ => Ok(0),
    }
}

/// Refuses Keras 1's products, whose meaning depends on the inputs.
fn refuse_merge(class: &str, config: &Value) -> Result<(), String> {
    let mode = config.get("mode").and_then(Value::as_str).filter(|_| class == "Merge");
    let axes = config.get("dot_axes").cloned().map_or(Value::Null, without_tuples);
    match mode {
        Some("dot") => Err(format!(
            "this is a Merge of Keras 1, in mode \"dot\"; for inputs of rank 2 and 3 it is DotConfig::new({axes}); for others it \
             multiplied the last two axes of each as matrices"
        )),
        Some("cos") => Err(format!(
            "this is a Merge of Keras 1, in mode \"cos\"; DotConfig::new({axes}).with_normalize(true) is the same for inputs of rank 2 \
             and 3 but for an axis of size 1 that stood after the batch, and where the product of both norms is below 1e-7"
        )),
        _ => Ok(()),
    }
}

/// What Keras and tf_keras write, or take back, for any layer.
const DROPPED_FROM_CONFIG: [&str; 13] = [
    "name",
    "trainable",
    "dtype",
    "dynamic",
    "autocast",
    "activity_regularizer",
    "batch_input_shape",
    "batch_shape",
    "input_shape",
    "input_dim",
    "batch_size",
    "sparse",
    "ragged",
];

/// The same beside `class_name` and `config`: by `serialize`, in a model's list of layers, and in the metadata of a SavedModel.
const DROPPED_FROM_LAYER: [&str; 19] = [
    "module",
    "registered_name",
    "build_config",
    "compile_config",
    "shared_object_id",
    "name",
    "inbound_nodes",
    "trainable",
    "dtype",
    "autocast",
    "activity_regularizer",
    "batch_input_shape",
    "build_input_shape",
    "input_spec",
    "save_spec",
    "stateful",
    "expects_training_arg",
    "must_restore_from_config",
    "preserve_input_structure_in_config",
];

/// The dictionary of `get_config()` as it is written, with our own options as further keys.
#[derive(Serialize)]
struct Dictionary<'a> {
    axes: &'a Axes,
    normalize: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_dims: Option<usize>,
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    broadcast_batch: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dtype: Option<DType>,
}

impl Serialize for DotConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Dictionary {
            axes: &self.axes,
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
        let value = Value::deserialize(deserializer)?;
        read(value).map_err(|problem| D::Error::custom(format!("Dot: {problem}")))
    }
}

/// Reads a dictionary, or a layer that holds one.
fn read(value: Value) -> Result<DotConfig, String> {
    let Value::Object(mut entries) = value else {
        return Err(format!("a configuration is a dictionary such as {{\"axes\": [1, 2], \"normalize\": false}}, not {value}"));
    };
    if !entries.contains_key("class_name") && !entries.contains_key("config") {
        return read_config(entries);
    }
    if let Some(class) = entries.get("class_name")
        && class != "Dot"
    {
        return Err(format!("this is a Keras layer {class}, not a \"Dot\""));
    }
    refuse_unknown(&entries, &["class_name", "config"], &DROPPED_FROM_LAYER)?;
    refuse_foreign(&entries)?;
    match (entries.remove("class_name"), entries.remove("config")) {
        (None, _) => Err("this layer has no class_name; write \"class_name\": \"Dot\"".into()),
        (_, None) => Err("this layer has no config; write \"config\": {\"axes\": 1}".into()),
        (_, Some(Value::Object(config))) => read_config(config),
        (_, Some(other)) => Err(format!("config is {other}; it must be a dictionary such as {{\"axes\": 1}}")),
    }
}

fn read_config(mut entries: Map<String, Value>) -> Result<DotConfig, String> {
    let read = ["axes", "normalize", "epsilon", "batch_dims", "broadcast_batch", "output_dtype"];
    refuse_unknown(&entries, &read, &DROPPED_FROM_CONFIG)?;
    let default = DotConfig::new(0);
    Ok(DotConfig {
        axes: take(&mut entries, "axes", "an integer, a pair [1, 2], or a list of pairs [[1, 2], [2, 1]]")?
            .ok_or("there are no axes; write \"axes\": 1 or \"axes\": [1, 2]")?,
        normalize: take(&mut entries, "normalize", "true or false")?.unwrap_or(default.normalize),
        epsilon: take(&mut entries, "epsilon", "a number")?.unwrap_or(default.epsilon),
        batch_dims: take(&mut entries, "batch_dims", "a whole number from 0 on")?.unwrap_or(default.batch_dims),
        broadcast_batch: take(&mut entries, "broadcast_batch", "true or false")?.unwrap_or(default.broadcast_batch),
        output_dtype: take(&mut entries, "output_dtype", "the name of a dtype, such as \"F32\" or \"I32\", or null")?.flatten(),
    })
}

/// Takes the value of `key` out of the dictionary, if it is there.
fn take<T: DeserializeOwned>(entries: &mut Map<String, Value>, key: &str, expected: &str) -> Result<Option<T>, String> {
    let Some(value) = entries.remove(key) else {
        return Ok(None);
    };
    let shown = value.to_string();
    T::deserialize(without_tuples(value)).map(Some).map_err(|_| format!("{key} is {shown}; it must be {expected}"))
}

/// Python's tuples, which JSON does not have, as lists.
fn without_tuples(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(without_tuples).collect(),
        Value::Object(mut entries)
            if entries.len() == 2
                && entries.get("class_name").is_some_and(|class| class == "__tuple__")
                && entries.get("items").is_some_and(Value::is_array) =>
        {
            without_tuples(entries["items"].take())
        }
        other => other,
    }
}

/// Refuses a layer that somebody registered under the name of Keras' own.
fn refuse_foreign(entries: &Map<String, Value>) -> Result<(), String> {
    let keras = ["keras", "tf_keras", "tensorflow"];
    let is_foreign = |module: &str| !keras.contains(&module.split('.').next().unwrap_or(module));
    match (entries.get("module").and_then(Value::as_str), entries.get("registered_name").and_then(Value::as_str)) {
        (Some(module), _) if is_foreign(module) => Err(format!("this is a Dot of the module \"{module}\", not Keras'")),
        (_, Some(name)) if name.contains('>') => Err(format!("this is a layer registered as \"{name}\", not Keras' Dot")),
        _ => Ok(()),
    }
}

/// Refuses the first key that is neither ours nor Keras'.
fn refuse_unknown(entries: &Map<String, Value>, read: &[&str], dropped: &[&str]) -> Result<(), String> {
    let mut known = read.iter().chain(dropped);
    let Some(unknown) = entries.keys().find(|key| !known.clone().any(|known| known == key)) else {
        return Ok(());
    };
    // One that begins with it is nearest: `eps`.
    let distance = |known: &&&str| (!known.starts_with(unknown.as_str()), edit_distance(unknown, known));
    let nearest = known.by_ref().min_by_key(distance).expect("some keys are known");
    Err(format!("unknown key \"{unknown}\"; write \"{nearest}\", the nearest known one, or remove it"))
}

/// How many letters to insert, delete or replace to make `b` of `a` (Levenshtein). The crate `strsim` needs std.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row = (0..=b.chars().count()).collect::<Vec<_>>();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = core::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}
