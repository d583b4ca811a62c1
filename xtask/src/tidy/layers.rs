//! Who may use whom (the code map and the invariants of ARCHITECTURE.md).

use super::{SourceFile, words};

/// The rules on one file.
pub(super) const RULES: &[fn(&SourceFile) -> Vec<String>] = &[burn, lower_layers, surroundings];

/// Rooms that know neither Burn nor CubeCL, so that another Burn leaves them as they are.
const WITHOUT_BURN: [&str; 7] = [
    "burn-nvfp4/src/error",
    "burn-nvfp4/src/format",
    "burn-nvfp4/src/recipe",
    "burn-nvfp4/src/rng",
    "burn-nvfp4/src/cpu",
    "burn-nvfp4/src/export",
    "models/src/config",
];

/// The layer of each room. A room uses rooms of its own layer or a lower one.
const LAYERS: [(&str, &[(&str, u8)]); 3] = [
    (
        "burn-nvfp4/src/",
        &[
            ("error", 0),
            ("format", 0),
            ("recipe", 1),
            ("rng", 1),
            ("cpu", 2),
            ("export", 2),
            ("packed_weights", 2),
            ("kernels", 2),
            ("scope", 2),
            ("stats", 2),
            ("runtime", 2),
            ("renewal", 2),
            ("engine", 3),
            ("decorator", 4),
            ("oscillation", 4),
        ],
    ),
    (
        "hybrid-ops/src/",
        &[("op", 0), ("kernels", 1), ("engine", 2), ("ops", 3)],
    ),
    (
        "models/src/",
        &[
            ("durable", 0),
            ("json", 0),
            ("config", 0),
            ("data", 0),
            ("nn", 1),
            ("hybrid", 2),
            ("checkpoint", 3),
            ("serving", 3),
            ("generate", 3),
            ("eval", 3),
            ("train", 4),
            ("study", 5),
            ("cli", 6),
        ],
    ),
];

/// Rooms that may read the environment and stdin, and print.
const OUTSIDE: [&str; 2] = ["models/src/cli", "models/src/main"];

/// True if `path` is the room `room` or lies in it.
fn lies_in(path: &str, room: &str) -> bool {
    path.strip_prefix(room)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// `format`, `recipe`, `rng`, `cpu` and `export` import neither Burn nor CubeCL.
fn burn(file: &SourceFile) -> Vec<String> {
    if !WITHOUT_BURN.iter().any(|room| lies_in(&file.path, room)) {
        return Vec::new();
    }
    let is_burn = |word: &str| {
        let ours = word == "burn_nvfp4" || word == "burn_nvfp4_models";
        let crates = word == "burn" || word.starts_with("burn_") || word.starts_with("cube");
        crates && !ours
    };
    let imports = |code: &str| code.contains("::") && words(code).any(is_burn);
    file.code()
        .filter(|(_, code)| imports(code))
        .map(|(line, _)| format!("{}:{line}: this layer knows nothing of Burn", file.path))
        .collect()
}

/// A room uses rooms of its own layer or a lower one.
fn lower_layers(file: &SourceFile) -> Vec<String> {
    let Some((path, layers)) = LAYERS
        .iter()
        .find_map(|(crate_, rooms)| Some((file.path.strip_prefix(crate_)?, *rooms)))
    else {
        return Vec::new();
    };
    let room = path.split(['/', '.']).next().unwrap_or_default();
    if matches!(room, "lib" | "main") {
        return Vec::new();
    }
    let layer_of = |room: &str| {
        layers
            .iter()
            .find(|(name, _)| *name == room)
            .map(|(_, l)| *l)
    };
    let Some(layer) = layer_of(room) else {
        return vec![format!(
            "{}: no layer is written down for `{room}`",
            file.path
        )];
    };
    let mut problems = Vec::new();
    for (line, code) in file.code() {
        for used in code
            .split("crate::")
            .skip(1)
            .filter_map(|after| words(after).next())
        {
            if layer_of(used).is_some_and(|used| used > layer) {
                problems.push(format!(
                    "{}:{line}: `{room}` lies below `{used}`",
                    file.path
                ));
            }
        }
    }
    problems
}

/// Below `cli`, nothing reads the environment or stdin, and nothing prints.
fn surroundings(file: &SourceFile) -> Vec<String> {
    let product = ["burn-nvfp4/src/", "hybrid-ops/src/", "models/src/"];
    if !product.iter().any(|folder| file.path.starts_with(folder))
        || OUTSIDE.iter().any(|room| lies_in(&file.path, room))
    {
        return Vec::new();
    }
    let reads_environment = |code: &str| {
        let imported =
            code.trim_start().starts_with("use std::") && words(code).any(|w| w == "env");
        imported || code.contains("std::env::") || code.contains("env::var")
    };
    let talks = |code: &str| {
        let calls = [
            "stdin(",
            "stdout(",
            "stderr(",
            "print!",
            "println!",
            "eprint!",
            "eprintln!",
        ];
        calls.iter().any(|call| code.contains(call))
    };
    file.code()
        .filter(|(_, code)| reads_environment(code) || talks(code))
        .map(|(line, _)| {
            format!(
                "{}:{line}: only `cli` reads the environment or talks to people",
                file.path
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, line: &str) -> Vec<String> {
        let file = SourceFile {
            path: path.to_owned(),
            text: format!("//! Header.\n{line}\n"),
        };
        RULES.iter().flat_map(|rule| rule(&file)).collect()
    }

    #[test]
    fn burn_below_the_engine_is_reported() {
        for line in [
            "use burn_backend::DType;",
            "use burn::tensor::Tensor;",
            "fn f() -> cubecl::prelude::Line<f32> {",
            "use cubek::matmul;",
        ] {
            for room in [
                "cpu/quantize.rs",
                "format.rs",
                "recipe/policy/presets.rs",
                "rng.rs",
            ] {
                let found = problems(&format!("burn-nvfp4/src/{room}"), line);
                let expected = format!("burn-nvfp4/src/{room}:2: this layer knows nothing of Burn");
                assert_eq!(found, [expected], "{line}");
            }
            assert_eq!(
                problems("burn-nvfp4/src/engine/ndarray.rs", line),
                [""; 0],
                "{line}"
            );
        }
    }

    #[test]
    fn our_own_crate_and_prose_about_burn_are_not_burn() {
        for line in [
            "// use burn_backend::DType;",
            "let burn = 1;",
            "use burn_nvfp4::format;",
        ] {
            assert_eq!(
                problems("burn-nvfp4/src/recipe/named.rs", line),
                [""; 0],
                "{line}"
            );
        }
    }

    #[test]
    fn a_higher_layer_is_reported() {
        for (path, line, used) in [
            (
                "burn-nvfp4/src/format/scale.rs",
                "use crate::recipe::Recipe;",
                "recipe",
            ),
            (
                "burn-nvfp4/src/cpu/gemm.rs",
                "let x = crate::engine::host();",
                "engine",
            ),
            (
                "burn-nvfp4/src/engine.rs",
                "use crate::decorator::Nvfp4;",
                "decorator",
            ),
            (
                "models/src/nn/ssd.rs",
                "use crate::hybrid::HybridLm;",
                "hybrid",
            ),
        ] {
            let room = path.split(['/', '.']).nth(2).unwrap();
            let expected = format!("{path}:2: `{room}` lies below `{used}`");
            assert_eq!(problems(path, line), [expected]);
        }
    }

    #[test]
    fn lower_layers_and_neighbours_may_be_used() {
        for (path, line) in [
            (
                "burn-nvfp4/src/decorator/linear.rs",
                "use crate::engine::Nvfp4Engine;",
            ),
            (
                "burn-nvfp4/src/recipe/spec.rs",
                "use crate::recipe::RecipeError;",
            ),
            ("burn-nvfp4/src/runtime.rs", "use crate::scope;"),
            (
                "burn-nvfp4/src/engine/tests.rs",
                "use crate::decorator::Nvfp4;",
            ),
            ("burn-nvfp4/src/lib.rs", "pub use crate::decorator::Nvfp4;"),
        ] {
            assert_eq!(problems(path, line), [""; 0]);
        }
    }

    #[test]
    fn a_room_without_a_layer_is_reported() {
        let found = problems("models/src/attic.rs", "");
        assert_eq!(
            found,
            ["models/src/attic.rs: no layer is written down for `attic`"]
        );
    }

    #[test]
    fn talking_below_the_command_line_is_reported() {
        for line in [
            "use std::{env, fs};",
            "let home = std::env::var(\"HOME\");",
            "io::stdin().read_line(&mut line)?;",
            "println!(\"{loss}\");",
            "eprint!(\"?\");",
            "let mut out = std::io::stdout();",
        ] {
            for path in ["models/src/train.rs", "burn-nvfp4/src/engine/host.rs"] {
                let found = problems(path, line);
                assert_eq!(found.len(), 1, "{path}: {line}");
                assert!(found[0].contains("only `cli`"), "{found:?}");
            }
            for path in [
                "models/src/cli.rs",
                "models/src/cli/train.rs",
                "models/src/main.rs",
            ] {
                assert_eq!(problems(path, line), [""; 0], "{line}");
            }
        }
        let unit_test = "#[cfg(test)]\nmod tests {\n    fn f() { println!(); }\n}";
        assert_eq!(problems("models/src/train.rs", unit_test), [""; 0]);
        assert_eq!(
            problems("models/src/train.rs", "const V: &str = env!(\"X\");"),
            [""; 0]
        );
    }
}
