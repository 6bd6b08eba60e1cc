//! Keras dictionaries and layers: files written by real Keras are read, and what is written is what Keras reads.

use burn::config::Config;
use burn::tensor::FloatDType;
use burn_dot::{DotConfig, KerasLayer};

fn read(json: &str) -> Result<DotConfig, String> {
    DotConfig::load_binary(json.as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn files_written_by_keras_are_read() {
    let pair = DotConfig::new((1, 2));
    let cosine = DotConfig::new(-1).with_normalize(true);
    for (file, expected) in [
        (include_str!("../fixtures/tf_keras_pair_config.json"), &pair),
        (include_str!("../fixtures/tf_keras_pair_layer.json"), &pair),
        (include_str!("../fixtures/tf_keras_cosine_config.json"), &cosine),
        (include_str!("../fixtures/tf_keras_cosine_layer.json"), &cosine),
        (include_str!("../fixtures/keras_pair_config.json"), &pair),
        (include_str!("../fixtures/keras_pair_layer.json"), &pair),
        (include_str!("../fixtures/keras_cosine_config.json"), &cosine),
        (include_str!("../fixtures/keras_cosine_layer.json"), &cosine),
    ] {
        assert_eq!(read(file).as_ref(), Ok(expected), "{file}");
    }
}

#[test]
fn what_is_written_is_what_keras_reads() {
    // fixtures/generate.py hands these two files to both Keras.
    let config = serde_json::to_string(&DotConfig::new((1, 2))).unwrap();
    assert_eq!(config, include_str!("../fixtures/burn_dot_config.json").trim());
    let layer = serde_json::to_string(&KerasLayer(DotConfig::new(-1).with_normalize(true))).unwrap();
    assert_eq!(layer, include_str!("../fixtures/burn_dot_layer.json").trim());
}

#[test]
fn a_floor_comes_back_to_the_last_digit() {
    let mut epsilon = 1e-12;
    while epsilon < 1.0 {
        let config = DotConfig::new(1).with_epsilon(epsilon);
        assert_eq!(read(&config.to_string()), Ok(config));
        epsilon *= 1.000_7;
    }
    let infinite = DotConfig::new(1).with_epsilon(f64::INFINITY).to_string();
    assert_eq!(read(&infinite).unwrap_err(), "Config error => Invalid format: Dot: epsilon must be a number");
}

fn every_option() -> DotConfig {
    DotConfig::new([(1, 2), (2, -3)])
        .with_normalize(true)
        .with_epsilon(1e-7)
        .with_batch_dims(0)
        .with_broadcast_batch(true)
        .with_output_dtype(FloatDType::F32)
}

#[test]
fn every_option_survives_the_round_trip() {
    for config in [DotConfig::new(1), DotConfig::new((1, -1)), DotConfig::new([(1, 2)]), every_option()] {
        let dictionary = serde_json::to_string(&config).unwrap();
        assert_eq!(read(&dictionary), Ok(config.clone()), "{dictionary}");
        let layer = serde_json::to_string(&KerasLayer(config.clone())).unwrap();
        assert_eq!(read(&layer), Ok(config.clone()), "{layer}");
        assert_eq!(serde_json::from_str::<KerasLayer>(&layer).unwrap(), KerasLayer(config));
    }
}

#[test]
fn options_are_left_out_at_their_defaults_and_written_otherwise() {
    let keys = |config: &DotConfig| match serde_json::to_value(config).unwrap() {
        serde_json::Value::Object(map) => map.keys().cloned().collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    assert_eq!(keys(&DotConfig::new(1)), ["axes", "normalize"]);
    let mut all = keys(&every_option());
    all.sort();
    assert_eq!(all, ["axes", "batch_dims", "broadcast_batch", "epsilon", "normalize", "output_dtype"]);
}

#[test]
fn a_config_is_saved_and_loaded_as_burns_configs_are() {
    let file = std::env::temp_dir().join(format!("burn-dot-config-{}.json", std::process::id()));
    every_option().save(&file).unwrap();
    let loaded = DotConfig::load(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(loaded, every_option());
}

#[test]
fn what_is_not_a_dot_is_refused_by_name() {
    assert_eq!(
        read(r#"{"class_name": "Dense", "config": {"units": 8}}"#).unwrap_err(),
        "Config error => Invalid format: this is a Keras layer \"Dense\", not a \"Dot\""
    );
    assert_eq!(read(r#"{"normalize": true}"#).unwrap_err(), "Config error => Invalid format: Dot: missing field `axes`");
    assert_eq!(
        read(r#"{"axes": "one"}"#).unwrap_err(),
        "Config error => Invalid format: Dot: axes must be an integer, a pair [1, 2], or a list of pairs [[1, 2], [2, 1]]"
    );
    assert_eq!(read(r#"{"class_name": "Dot"}"#).unwrap_err(), "Config error => Invalid format: missing field `config`");
}
