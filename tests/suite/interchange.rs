//! Keras dictionaries and layers: files written by real Keras are read, and what is written is what Keras reads.

use burn::config::Config;
use burn::tensor::{DType, FloatDType, IntDType};
use burn_dot::{Axes, DotConfig, KerasLayer};

fn read(json: &str) -> Result<DotConfig, String> {
    DotConfig::load_binary(json.as_bytes()).map_err(|error| error.to_string())
}

/// The text of the error, without what Burn puts before it.
fn refused(json: &str) -> String {
    let text = read(json).expect_err(json);
    text.strip_prefix("Config error => Invalid format: ").expect("Burn's words").to_string()
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
    assert_eq!(refused(&infinite), "Dot: epsilon is null; it must be a number");
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
    let integers = DotConfig::new(1).with_output_dtype(IntDType::I64);
    for config in [DotConfig::new(1), DotConfig::new((1, -1)), DotConfig::new([(1, 2)]), every_option(), integers] {
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
fn every_dtype_of_an_output_is_written_by_its_name() {
    use DType::*;
    for dtype in [F64, F32, Flex32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8] {
        let config = DotConfig::new(1).with_output_dtype(dtype);
        assert!(config.to_string().contains(&format!("\"output_dtype\": \"{dtype:?}\"")), "{config}");
        assert_eq!(read(&config.to_string()), Ok(config));
    }
    assert_eq!(read(r#"{"axes": 1, "output_dtype": null}"#), Ok(DotConfig::new(1)), "None of Python");
    let unset = DotConfig::new(1).with_output_dtype(FloatDType::F32).without_output_dtype();
    assert_eq!(unset, DotConfig::new(1));
}

#[test]
fn tuples_of_a_saved_models_metadata_are_read() {
    let tuple = |items: &str| format!(r#"{{"class_name": "__tuple__", "items": [{items}]}}"#);
    let pair = format!(r#"{{"axes": {}, "normalize": true}}"#, tuple("1, 2"));
    assert_eq!(read(&pair), Ok(DotConfig::new((1, 2)).with_normalize(true)));
    assert_eq!(read(&format!(r#"{{"class_name": "Dot", "config": {pair}}}"#)), read(&pair));
    let pairs = Ok(DotConfig::new([(1, 2), (2, -1)]));
    assert_eq!(read(&format!(r#"{{"axes": [{}, {}]}}"#, tuple("1, 2"), tuple("2, -1"))), pairs);
    assert_eq!(read(&format!(r#"{{"axes": {}}}"#, tuple(&[tuple("1, 2"), "[2, -1]".into()].join(", ")))), pairs);
    for wrong in [r#"{"class_name": "tuple", "items": [1, 2]}"#, r#"{"class_name": "__tuple__", "items": 1}"#] {
        assert!(refused(&format!(r#"{{"axes": {wrong}}}"#)).starts_with("Dot: axes is {"), "{wrong}");
    }
}

#[test]
fn what_keras_writes_about_any_layer_is_dropped() {
    let config = r#"{"name": "dot", "trainable": true, "dtype": {"module": "keras", "class_name": "DTypePolicy",
        "config": {"name": "mixed_float16"}, "registered_name": null, "shared_object_id": 3}, "dynamic": false, "autocast": true,
        "activity_regularizer": null, "batch_input_shape": {"class_name": "__tuple__", "items": [null, 3]}, "batch_shape": [null, 3],
        "input_shape": [3], "input_dim": 3, "batch_size": 4, "sparse": false, "ragged": false, "axes": 1, "normalize": false}"#;
    assert_eq!(read(config), Ok(DotConfig::new(1)));
    // A layer of Keras 3, with the names under which a functional model lists it.
    let listed = format!(
        r#"{{"module": "keras.layers", "class_name": "Dot", "config": {config}, "registered_name": null, "build_config":
        {{"input_shape": [[null, 3], [null, 3]]}}, "compile_config": null, "shared_object_id": 7, "name": "dot", "inbound_nodes": []}}"#
    );
    assert_eq!(read(&listed), Ok(DotConfig::new(1)));
    // A layer in the metadata of a SavedModel.
    let metadata = format!(
        r#"{{"name": "dot", "trainable": true, "expects_training_arg": false, "dtype": "float32", "batch_input_shape": null,
        "stateful": false, "must_restore_from_config": false, "preserve_input_structure_in_config": false, "autocast": true,
        "class_name": "Dot", "config": {config}, "shared_object_id": 2, "input_spec": [], "save_spec": null,
        "activity_regularizer": null, "build_input_shape": [{{"class_name": "TensorShape", "items": [null, 3]}}]}}"#
    );
    assert_eq!(read(&metadata), Ok(DotConfig::new(1)));
}

#[test]
fn an_unknown_key_is_refused_by_the_nearest_known_one() {
    for (json, unknown, nearest) in [
        (r#"{"axes": 1, "normalise": true}"#, "normalise", "normalize"),
        (r#"{"axis": 1}"#, "axis", "axes"),
        (r#"{"axes": 1, "eps": 1e-7}"#, "eps", "epsilon"),
        (r#"{"axes": 1, "batch_dim": 0}"#, "batch_dim", "batch_dims"),
        (r#"{"axes": 1, "trainble": true}"#, "trainble", "trainable"),
        (r#"{"class_name": "Dot", "config": {"axes": 1, "dtpye": "float32"}}"#, "dtpye", "dtype"),
        (r#"{"class_name": "Dot", "config": {"axes": 1}, "registred_name": null}"#, "registred_name", "registered_name"),
        (r#"{"clas_name": "Dot", "config": {"axes": 1}}"#, "clas_name", "class_name"),
    ] {
        assert_eq!(
            refused(json),
            format!(r#"Dot: unknown key "{unknown}"; write "{nearest}", the nearest known one, or remove it"#),
            "{json}"
        );
    }
}

#[test]
fn what_is_not_a_dot_is_refused_by_name() {
    for (json, text) in [
        (r#"{"class_name": "Dense", "config": {"units": 8}}"#, r#"this is a Keras layer "Dense", not a "Dot""#),
        (r#"{"class_name": "Dot"}"#, r#"this layer has no config; write "config": {"axes": 1}"#),
        (r#"{"config": {"axes": 1}}"#, r#"this layer has no class_name; write "class_name": "Dot""#),
        (r#"{"class_name": "Dot", "config": [1]}"#, r#"config is [1]; it must be a dictionary such as {"axes": 1}"#),
        ("[1, 2]", r#"a configuration is a dictionary such as {"axes": [1, 2], "normalize": false}, not [1,2]"#),
    ] {
        assert_eq!(refused(json), format!("Dot: {text}"), "{json}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_by_its_key() {
    let axes = "an integer, a pair [1, 2], or a list of pairs [[1, 2], [2, 1]]";
    for (json, text) in [
        (r#"{"normalize": true}"#, r#"there are no axes; write "axes": 1 or "axes": [1, 2]"#),
        (r#"{"axes": "one"}"#, &format!(r#"axes is "one"; it must be {axes}"#)),
        (r#"{"axes": 1.5}"#, &format!("axes is 1.5; it must be {axes}")),
        (r#"{"axes": [1, 2, 3]}"#, &format!("axes is [1,2,3]; it must be {axes}")),
        (r#"{"axes": 1, "normalize": "yes"}"#, r#"normalize is "yes"; it must be true or false"#),
        (r#"{"axes": 1, "epsilon": "small"}"#, r#"epsilon is "small"; it must be a number"#),
        (r#"{"axes": 1, "batch_dims": -1}"#, "batch_dims is -1; it must be a whole number from 0 on"),
        (r#"{"axes": 1, "broadcast_batch": 1}"#, "broadcast_batch is 1; it must be true or false"),
        (
            r#"{"axes": 1, "output_dtype": "float32"}"#,
            r#"output_dtype is "float32"; it must be the name of a dtype, such as "F32" or "I32", or null"#,
        ),
    ] {
        assert_eq!(refused(json), format!("Dot: {text}"), "{json}");
    }
}

#[test]
fn axes_alone_are_written_and_read_as_keras_lists() {
    for (axes, json) in [(Axes::from(-1), "-1"), (Axes::from((1, 2)), "[1,2]"), (Axes::from([(1, 2), (2, 1)]), "[[1,2],[2,1]]")]
    {
        assert_eq!(serde_json::to_string(&axes).unwrap(), json);
        assert_eq!(serde_json::from_str::<Axes>(json).unwrap(), axes);
    }
    assert_eq!(
        serde_json::from_str::<Axes>("true").unwrap_err().to_string(),
        "axes must be an integer, a pair [1, 2], or a list of pairs [[1, 2], [2, 1]]"
    );
}
