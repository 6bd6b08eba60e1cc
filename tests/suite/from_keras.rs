//! Models that Keras saved: every `Dot` in them is found, and what the example builds of them predicts what Keras predicted.
//!
//! The files are in `examples/keras/models/`, made by real Keras (`examples/keras/models.py`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn_dot::{Dot, DotConfig, DotError, dots_of};
use burn_store::{ModuleSnapshot, ModuleStore, SafetensorsStore, bridge};
use serde_json::{Value, json};

use crate::device::{device, is_ieee, turn_to_draw};

#[path = "../../examples/from_keras/graph.rs"]
mod graph;
#[path = "../../examples/from_keras/model.rs"]
mod model;

use graph::Graph;
use model::{Exported, difference};

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/keras/models");
const LIBRARIES: [&str; 2] = ["keras", "tf_keras"];

/// A model that a library saved: both files, without their endings.
fn saved(library: &str, model: &str) -> PathBuf {
    Path::new(MODELS).join(format!("{library}_{model}"))
}

fn config_of(file: &Path) -> String {
    fs::read_to_string(file.with_extension("json")).unwrap()
}

/// What a transcendental function of the device may add to the 1e-6 that IEEE arithmetic keeps.
fn tolerance() -> f64 {
    if is_ieee() { 1e-6 } else { 1e-5 }
}

// --- Predictions ---------------------------------------------------------------------------------------------------------

/// The models that each library saved, and how many outputs they have.
const SAVED: [(&str, usize); 5] = [("dense_dot", 1), ("pair", 1), ("cosine", 2), ("towers", 1), ("rank_4", 1)];

#[test]
fn every_model_predicts_what_keras_predicted() {
    for (library, version) in [("keras", "3."), ("tf_keras", "2.")] {
        for (model, outputs) in SAVED {
            let exported = Exported::read(&saved(library, model), &device()).unwrap();
            assert!(exported.keras_version.starts_with(version), "{}", exported.keras_version);
            let predictions = exported.predict(&device()).unwrap();
            assert_eq!((predictions.len(), exported.predictions.len()), (outputs, outputs));
            for (ours, theirs) in predictions.iter().zip(&exported.predictions) {
                let far = difference(ours, theirs).unwrap();
                assert!(far <= tolerance(), "{library} {model}: {far:e}");
                let largest = theirs.iter::<f64>().fold(0.0, |largest: f64, x| largest.max(x.abs()));
                assert!(largest > 0.1, "{library} {model}: predictions of at most {largest:e} would prove little");
            }
        }
    }
    let files = fs::read_dir(MODELS).unwrap().count();
    assert_eq!(files, 2 * LIBRARIES.len() * SAVED.len(), "every file in the folder is looked at");
}

/// The second example of the documentation of Keras' `Dot`, as a user writes it in Burn.
#[derive(Module, Debug)]
struct DenseDot {
    left: Linear,
    right: Linear,
    score: Dot,
}

#[test]
fn a_model_written_by_hand_loads_keras_weights_by_their_names() {
    let _turn = turn_to_draw();
    let device = device();
    let dense = || LinearConfig::new(2, 8).init(&device);
    let mut model = DenseDot { left: dense(), right: dense(), score: DotConfig::new(1).init() };
    let file = saved("keras", "dense_dot").with_extension("safetensors");
    let mut store =
        SafetensorsStore::from_file(&file).with_key_remapping("/kernel$", ".weight").with_key_remapping("/bias$", ".bias");
    model.load_from(&mut store).unwrap();

    let mut read = |name: &str| bridge::to_data(store.get_tensor(name).unwrap().unwrap()).unwrap();
    let [x, y] = ["input/0", "input/1"].map(|name| Tensor::<2>::from_data(read(name), &device));
    let scores: Tensor<2> = model.score.forward(model.left.forward(x), model.right.forward(y));
    assert!(difference(&scores.into_data(), &read("prediction/0")).unwrap() <= tolerance());
}

#[derive(Module, Debug)]
struct Tower {
    embedding: Embedding,
    dense: Linear,
}

#[test]
fn a_tower_written_by_hand_loads_the_weights_of_a_model_within_the_model() {
    let _turn = turn_to_draw();
    let device = device();
    let embedding = EmbeddingConfig::new(11, 8).init(&device);
    let mut users = Tower { embedding, dense: LinearConfig::new(8, 6).init(&device) };
    let file = saved("tf_keras", "towers").with_extension("safetensors");
    let mut store = SafetensorsStore::from_file(&file)
        .with_key_remapping("^users/", "")
        .with_key_remapping("/(kernel|embeddings)$", ".weight")
        .with_key_remapping("/bias$", ".bias");
    let applied = users.load_from(&mut store).unwrap();
    assert_eq!(applied.applied, ["embedding.weight", "dense.weight", "dense.bias"]);
    let kernel = bridge::to_data(store.get_tensor("dense.weight").unwrap().unwrap()).unwrap();
    assert_eq!(users.dense.weight.val().into_data(), kernel, "nothing is transposed");
}

// --- Refusals ------------------------------------------------------------------------------------------------------------

/// Writes a copy of a model whose config and weights were changed.
fn changed(name: &str, from: &Path, config: impl FnOnce(&mut Value), weights: impl FnOnce(Vec<u8>) -> Vec<u8>) -> PathBuf {
    let file = std::env::temp_dir().join(format!("burn-dot-from-keras-{}-{name}", std::process::id()));
    let mut json: Value = serde_json::from_str(&config_of(from)).unwrap();
    config(&mut json);
    fs::write(file.with_extension("json"), json.to_string()).unwrap();
    let bytes = fs::read(from.with_extension("safetensors")).unwrap();
    fs::write(file.with_extension("safetensors"), weights(bytes)).unwrap();
    file
}

/// The whole text of the error of a changed model, without the names of its files.
fn refused(name: &str, from: &Path, config: impl FnOnce(&mut Value), weights: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    let file = changed(name, from, config, weights);
    let result = Exported::read(&file, &device()).and_then(|exported| exported.predict(&device()));
    let text = format!("{:#}", result.expect_err(name));
    for ending in ["json", "safetensors"] {
        fs::remove_file(file.with_extension(ending)).unwrap();
    }
    let start = format!("cannot read {}.", file.display());
    let text = text.strip_prefix(&start).unwrap_or(&text);
    text.strip_prefix("json: ").or(text.strip_prefix("safetensors: ")).unwrap_or(text).to_string()
}

/// A layer of the outermost model.
fn layer<'a>(config: &'a mut Value, name: &str) -> &'a mut Value {
    let layers = config["config"]["layers"].as_array_mut().unwrap();
    layers.iter_mut().find(|layer| layer["config"]["name"] == name).unwrap()
}

#[test]
fn a_layer_that_is_not_read_is_refused_by_name() {
    for library in LIBRARIES {
        let from = saved(library, "dense_dot");
        let text = |change: &dyn Fn(&mut Value)| refused("layer", &from, |config| change(layer(config, "left")), |bytes| bytes);
        assert_eq!(
            text(&|left| left["class_name"] = json!("LSTM")),
            "layer \"left\": LSTM is not read here; Dense, Embedding, Flatten, Reshape, Activation, Dropout and Dot are"
        );
        assert_eq!(
            text(&|left| left["config"]["activation"] = json!("gelu")),
            "layer \"left\": activation \"gelu\" is not read here; linear, relu, sigmoid, softmax and tanh are"
        );
        assert_eq!(
            text(&|left| left["config"]["dtype"] = json!("mixed_float16")),
            "layer \"left\": it computes in mixed_float16; only float32 is read here"
        );
        assert_eq!(text(&|left| left["config"]["units"] = json!(-8)), "layer \"left\": units is -8; it must be a whole number");
    }
}

#[test]
fn a_model_that_hangs_together_otherwise_is_refused() {
    let from = saved("tf_keras", "dense_dot");
    let text = |change: &dyn Fn(&mut Value)| refused("model", &from, change, |bytes| bytes);
    assert_eq!(
        text(&|config| layer(config, "left")["inbound_nodes"] = json!([[["score", 0, 0, {}]]])),
        "output 0 of call 0 of the layer \"score\" is made of itself"
    );
    assert_eq!(
        text(&|config| layer(config, "left")["inbound_nodes"] = json!([[["nowhere", 0, 0, {}]]])),
        "there is no output 0 of call 0 of the layer \"nowhere\""
    );
    assert_eq!(
        text(&|config| layer(config, "score")["inbound_nodes"] = json!([[["left", 0, 0, {}], ["right", 1, 0, {}]]])),
        "there is no output 0 of call 1 of the layer \"right\""
    );
    assert_eq!(
        text(&|config| layer(config, "score")["inbound_nodes"] = json!([[["left", 0, 0, {}]]])),
        "layer \"score\": it has 1 inputs; a Dot has two"
    );
    assert_eq!(
        text(&|config| config["class_name"] = json!("Scores")),
        "the model is a Scores; Functional and Sequential models are read here"
    );
    assert_eq!(
        text(&|config| layer(config, "x")["config"]["batch_input_shape"] = json!([null, 3])),
        "left/kernel has shape [2, 8], but its layer's config says [3, 8]"
    );
    assert_eq!(
        text(&|config| layer(config, "left")["config"]["units"] = json!(9)),
        "layer \"score\": Dot: lhs axis 1 has size 9 but rhs axis 1 has size 8; lhs [?, 9], rhs [?, 8]"
    );
    assert_eq!(
        text(&|config| layer(config, "score")["config"]["normalise"] = json!(true)),
        "Dot: layer \"score\": unknown key \"normalise\"; write \"normalize\", the nearest known one, or remove it"
    );
}

#[test]
fn weights_that_are_not_the_models_are_refused() {
    let from = saved("keras", "towers");
    let text = |change: &dyn Fn(&mut Value), weights: &dyn Fn(Vec<u8>) -> Vec<u8>| refused("weights", &from, change, weights);
    // In the header, which is text: a name is replaced by another of its length.
    let renamed = |from: &str, to: &str| {
        let (from, to) = (from.as_bytes().to_vec(), to.as_bytes().to_vec());
        move |mut bytes: Vec<u8>| {
            let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
            bytes[at..at + from.len()].copy_from_slice(&to);
            bytes
        }
    };
    assert_eq!(
        text(&|_| (), &renamed("users/dense/kernel", "users/dense/kernal")),
        "it has no users/dense/kernel; export the model again"
    );
    assert_eq!(text(&|_| (), &renamed("prediction/0", "prediction/9")), "it has no prediction/0; export the model again");
    let no_bias = |config: &mut Value| layer(config, "probability")["config"]["use_bias"] = json!(false);
    assert_eq!(text(&no_bias, &|bytes| bytes), "its probability/bias belongs to no layer that is read here");
    let cut = text(&|_| (), &|mut bytes| {
        bytes.truncate(bytes.len() / 2);
        bytes
    });
    assert!(cut.starts_with("SafeTensors error: "), "{cut}");
    // One user of the sample is the twelfth.
    let twelfth = |bytes: Vec<u8>| with_first_id(bytes, 11);
    assert_eq!(text(&|_| (), &twelfth), "layer \"users/embedding\": id 11 is asked for, but there are 11, from 0 on");
}

/// Replaces the first number of the sample `input/0`, an i32, by the header's offset of it.
fn with_first_id(mut bytes: Vec<u8>, id: i32) -> Vec<u8> {
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(names["input/0"]["dtype"], "I32");
    let at = 8 + header + names["input/0"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&id.to_le_bytes());
    bytes
}

#[test]
fn a_graph_needs_no_weights() {
    let graph = Graph::read(&config_of(&saved("tf_keras", "towers"))).unwrap();
    let layers: Vec<&str> = graph.steps.iter().map(|step| &*step.layer).collect();
    let users = ["users/embedding", "users/flat", "users/dense"];
    let items = ["items/embedding", "items/flat", "items/dense"];
    assert_eq!(layers, [&["user_id", "item_id"], &users[..], &items, &["cosine", "probability"]].concat());
}

// --- Every Dot -----------------------------------------------------------------------------------------------------------

/// The products of a model, with the floor of its Keras.
fn expected(library: &str, model: &str) -> Vec<(String, DotConfig)> {
    let cosine = |axis: isize| {
        let epsilon = if library == "keras" { 1e-7 } else { 1e-6 };
        DotConfig::new(axis).with_normalize(true).with_epsilon(epsilon)
    };
    let dots = match model {
        "dense_dot" => vec![("score", DotConfig::new(1))],
        "pair" => vec![("pair", DotConfig::new((1, 2)))],
        "cosine" => vec![("cosine", cosine(-1)), ("head/plain", DotConfig::new(1))],
        "towers" => vec![("cosine", cosine(1))],
        "rank_4" => vec![("dot", DotConfig::new((3, 3)))],
        other => panic!("{other}"),
    };
    dots.into_iter().map(|(name, config)| (name.to_string(), config)).collect()
}

#[test]
fn every_dot_of_a_saved_model_is_found() {
    for library in LIBRARIES {
        for (model, _) in SAVED {
            assert_eq!(dots_of(&config_of(&saved(library, model))), Ok(expected(library, model)), "{library} {model}");
        }
    }
}

fn found(json: &str) -> Vec<(String, DotConfig)> {
    dots_of(json).unwrap_or_else(|error| panic!("{error}"))
}

fn named(dots: &[(&str, DotConfig)]) -> Vec<(String, DotConfig)> {
    dots.iter().map(|(name, config)| (name.to_string(), config.clone())).collect()
}

#[test]
fn dots_that_a_subclass_lists_are_found() {
    let both = named(&[("first", DotConfig::new((1, 2))), ("second", DotConfig::new(1).with_normalize(true))]);
    assert_eq!(found(include_str!("../fixtures/keras_subclass_model.json")), both);
    assert_eq!(found(include_str!("../fixtures/tf_keras_subclass_model.json")), both);
}

#[test]
fn dots_of_a_saved_models_metadata_are_found_once() {
    let cosine = DotConfig::new(1).with_normalize(true);
    assert_eq!(found(include_str!("../fixtures/tf_keras_saved_model.json")), named(&[("cosine", cosine)]));
}

#[test]
fn dots_within_models_and_wrappers_are_named_by_all_of_them() {
    let dot = |name: &str, axes: Value| json!({"class_name": "Dot", "config": {"name": name, "axes": axes}});
    let model =
        |class: &str, name: &str, layers: Value| json!({"class_name": class, "config": {"name": name, "layers": layers}});
    let wrapped = json!({"class_name": "TimeDistributed", "config": {"name": "each", "layer": dot("inner", json!(-1))}});
    let tower = model("Sequential", "tower", json!([dot("deep", json!([2, 1])), wrapped]));
    let whole = model("Functional", "whole", json!([dot("score", json!(1)), model("Model", "within", json!([tower]))]));
    let expected = named(&[
        ("score", DotConfig::new(1)),
        ("within/tower/deep", DotConfig::new((2, 1))),
        ("within/tower/each/inner", DotConfig::new(-1)),
    ]);
    assert_eq!(found(&whole.to_string()), expected);
    assert_eq!(found(&whole["config"].to_string()), expected, "the model's get_config()");
    assert_eq!(found(&whole["config"]["layers"].to_string()), expected, "its list of layers");
    assert_eq!(found(&dot("alone", json!(1)).to_string()), named(&[("alone", DotConfig::new(1))]));
    let unnamed = r#"{"class_name": "Dot", "config": {"axes": 1}}"#;
    assert_eq!(found(unnamed), named(&[("Dot", DotConfig::new(1))]), "Keras names every layer");
}

#[test]
fn a_model_without_a_dot_has_none_and_a_foreign_dot_is_passed_over() {
    let foreign =
        r#"{"module": "mine", "class_name": "Dot", "config": {"name": "dot", "axes": "all"}, "registered_name": "mine>Dot"}"#;
    let dense = r#"{"class_name": "Dense", "config": {"name": "dense", "units": 8}}"#;
    for layers in [foreign, dense] {
        let model = format!(r#"{{"class_name": "Sequential", "config": {{"layers": [{layers}]}}}}"#);
        assert_eq!(dots_of(&model), Ok(vec![]), "{model}");
    }
}

#[test]
fn a_floor_that_a_dot_names_is_not_replaced_by_that_of_keras_3() {
    let dot = json!({"class_name": "Dot", "config": {"name": "d", "axes": -1, "normalize": true, "epsilon": 1e-3}});
    let model = json!({"class_name": "Sequential", "config": [dot], "keras_version": "3.15.1"}).to_string();
    assert_eq!(dots_of(&model).unwrap()[0].1.epsilon, 1e-3);
}

#[test]
fn only_keras_3_by_its_version_has_its_floor() {
    for (version, epsilon) in [(json!("3.15.1"), 1e-7), (json!("2.15.0"), 1e-6), (json!("30.1"), 1e-6), (Value::Null, 1e-6)] {
        let layer = |name: &str, normalize: bool| json!({"class_name": "Dot", "config": {"name": name, "axes": 1, "normalize": normalize}});
        let layers = json!([layer("plain", false), layer("cosine", true)]);
        let model = json!({"class_name": "Sequential", "config": layers, "keras_version": version}).to_string();
        let cosine = DotConfig::new(1).with_normalize(true).with_epsilon(epsilon);
        assert_eq!(found(&model), named(&[("plain", DotConfig::new(1)), ("cosine", cosine)]), "{version}");
    }
}

/// As Keras 1.2.2 writes a Sequential model that begins with a merge of two.
fn keras_1(mode: &str, axes: Value) -> String {
    let branch = |name: &str| json!({"class_name": "Sequential", "config": [{"class_name": "Dense", "config": {"name": name, "output_dim": 8}}]});
    let merge = json!({"class_name": "Merge", "config": {"name": "merge_1", "mode": mode, "mode_type": "raw", "concat_axis": -1,
        "dot_axes": axes, "output_shape": null, "output_shape_type": "raw", "output_mask": null, "output_mask_type": "raw",
        "arguments": {}, "layers": [branch("dense_1"), branch("dense_2")]}});
    json!({"class_name": "Sequential", "config": [merge], "keras_version": "1.2.2"}).to_string()
}

#[test]
fn a_merge_of_keras_1_is_refused_with_what_it_is_here() {
    assert_eq!(
        dots_of(&keras_1("dot", json!([2, 1]))).unwrap_err().to_string(),
        "Dot: layer \"merge_1\": this is a Merge of Keras 1, in mode \"dot\"; for inputs of rank 2 and 3 it is DotConfig::new([2,1]); \
         for others it multiplied the last two axes of each as matrices"
    );
    assert_eq!(
        dots_of(&keras_1("cos", json!(1))).unwrap_err().to_string(),
        "Dot: layer \"merge_1\": this is a Merge of Keras 1, in mode \"cos\"; DotConfig::new(1).with_normalize(true) is the same for \
         inputs of rank 2 and 3 but for an axis of size 1 that stood after the batch, and where the product of both norms is below 1e-7"
    );
    assert_eq!(dots_of(&keras_1("concat", json!(-1))), Ok(vec![]), "other merges have no product");
}

#[test]
fn what_is_wrong_with_a_model_is_said_with_the_layer() {
    for (json, layer, text) in [
        ("", None, "Dot: this is not JSON: EOF while parsing a value at line 1 column 0"),
        ("NaN", None, "Dot: this is not JSON: expected value at line 1 column 1"),
        (r#"{"axes": 1}"#, None, "Dot: this is not a Keras model: no layer in it has a class_name; write model.to_json()"),
        (
            r#"{"class_name": "Model", "config": {"layers": [{"class_name": "Dot", "config": {"name": "score", "axis": 1}}]}}"#,
            Some("score"),
            "Dot: layer \"score\": unknown key \"axis\"; write \"axes\", the nearest known one, or remove it",
        ),
        (
            r#"[{"class_name": "Dot", "name": "bare"}]"#,
            Some("bare"),
            "Dot: layer \"bare\": this layer has no config; write \"config\": {\"axes\": 1}",
        ),
    ] {
        let error = dots_of(json).unwrap_err();
        assert_eq!(error.to_string(), text);
        assert!(matches!(error, DotError::KerasModel { layer: at, .. } if at.as_deref() == layer), "{json}");
    }
}
