//! Licences: every crate can be had under one that is on the list.

/// Licences under which a dependency may be used.
///
/// All are permissive, except MPL-2.0, whose terms stay with its own files: dependencies are used
/// unchanged.
const ALLOWED: [&str; 16] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    // LLVM's older one: libFuzzer, which only `cargo xtask fuzz` compiles.
    "NCSA",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "WTFPL",
    "Zlib",
];

/// A crate and what its manifest says about its licence.
#[derive(Clone, Debug)]
pub(super) struct Licence {
    /// The crate.
    pub(super) package: String,
    /// An SPDX expression, or the older spelling with slashes.
    pub(super) expression: Option<String>,
}

/// Crates whose licence is missing, or cannot be met with the list.
pub(super) fn problems(packages: &[Licence]) -> Vec<String> {
    let refused = |one: &&Licence| !one.expression.as_deref().is_some_and(is_allowed);
    let name = |one: &Licence| {
        let licence = one.expression.as_deref().unwrap_or("no licence");
        format!("{}: {licence} is not on the list of licences", one.package)
    };
    packages.iter().filter(refused).map(name).collect()
}

/// True if an SPDX expression can be met: `OR` is a choice, `AND` binds closer and means both.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut tokens = spaced.split_whitespace().peekable();
    let met = any(&mut tokens);
    met && tokens.next().is_none()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(tokens: &mut Tokens<'_>) -> bool {
    let mut met = all(tokens);
    while tokens.next_if_eq(&"OR").is_some() {
        // Both sides are read, whichever is met.
        met |= all(tokens);
    }
    met
}

fn all(tokens: &mut Tokens<'_>) -> bool {
    let mut met = one(tokens);
    while tokens.next_if_eq(&"AND").is_some() {
        met &= one(tokens);
    }
    met
}

fn one(tokens: &mut Tokens<'_>) -> bool {
    match tokens.next() {
        Some("(") => {
            let met = any(tokens);
            tokens.next_if_eq(&")").is_some() && met
        }
        Some(name) => match tokens.next_if_eq(&"WITH") {
            Some(_) => {
                let exception = tokens.next().unwrap_or_default();
                ALLOWED.contains(&format!("{name} WITH {exception}").as_str())
            }
            None => ALLOWED.contains(&name),
        },
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_needs_one_and_a_conjunction_all() {
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("Apache-2.0 / MIT", true),
            ("GPL-3.0-only OR MIT", true),
            ("MIT OR Apache-2.0 OR LGPL-2.1-or-later", true),
            ("MIT AND GPL-3.0-only", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND OpenSSL", false),
            ("GPL-3.0-only OR MIT AND OpenSSL", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0-only WITH Classpath-exception-2.0", false),
            ("(MIT", false),
            ("MIT)", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(expression), expected, "{expression}");
        }
    }

    #[test]
    fn a_crate_without_a_usable_licence_is_named() {
        let licence = |package: &str, expression: Option<&str>| Licence {
            package: package.to_owned(),
            expression: expression.map(str::to_owned),
        };
        let packages = [
            licence("a", Some("MIT")),
            licence("b", None),
            licence("c", Some("AGPL-3.0-only")),
        ];
        assert_eq!(
            problems(&packages),
            [
                "b: no licence is not on the list of licences",
                "c: AGPL-3.0-only is not on the list of licences",
            ]
        );
    }
}
