//! Formulas in LaTeX, brought into a form in which equal ones are mostly equal strings.
//!
//! 1. What stands behind the last `=`.
//! 2. Names of units go, as whole words first and then wherever they stand, but never inside the
//!    name of a LaTeX command (`\left` keeps its `ft`).
//! 3. Articles, spaces, dollars and some spacing commands go.
//! 4. What is in dollars, in a box or in a text command stands for the whole.
//! 5. Arguments without braces get them: `\frac12`, `\sqrt3`.
//! 6. Separators of thousands go.
//!
//! Source: arXiv:2206.14858v2, appendix D, with the repairs that the harness made since (2 and 6).

use std::sync::LazyLock;

use regex::Regex;

use super::pattern;

/// Replaced in this order, after whole words of units have gone.
const REPLACED: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

/// Words that name a unit or a kind of answer, in the order in which they go.
const WORDS: [&str; 26] = [
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
];

/// Marks that add nothing to an answer, in the order in which they go.
const MARKS: [&str; 16] = [
    "\\ldots",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
    "\"",
    "\\dots",
];

static COMMAND: LazyLock<Regex> = LazyLock::new(|| pattern(r"\\[a-zA-Z]+"));
static FINAL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"Final Answer: The final answer is(.*?). I hope it is correct."));
static IN_DOLLARS: LazyLock<Regex> = LazyLock::new(|| pattern(r"(.*?)(\$)(.*?)(\$)(.*)"));
/// One after the other, so that what is in one may be in another.
static IN_TEXT: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    ["text", "textbf", "overline"].map(|name| pattern(&format!(r"\\{name}\{{(.*?)\}}")))
});
static IN_BOX: LazyLock<Regex> = LazyLock::new(|| pattern(r"\\boxed\{(.*)\}"));
static BARE_FRACTION: LazyLock<Regex> = LazyLock::new(|| pattern(r"frac([^{])(.)"));
static BARE_ROOT_WITH_INDEX: LazyLock<Regex> = LazyLock::new(|| pattern(r"sqrt(\[[^\]]*\])(\w)"));
static BARE_ROOT: LazyLock<Regex> = LazyLock::new(|| pattern(r"sqrt([^{\[])"));
static THOUSANDS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^-?\d{1,3}(,\d{3})+$"));

/// The answer in the sentence that the published examples end with.
///
/// The end of that sentence is put behind the text first, as the harness does: a model that stopped
/// just before it has answered.
pub fn final_answer(text: &str) -> Option<String> {
    let text = format!("{text}I hope it is correct.");
    let answer = FINAL.captures(&text)?.get(1)?;
    Some(answer.as_str().trim().to_owned())
}

/// What is in the last box of a text.
pub fn last_boxed(text: &str) -> Option<&str> {
    if let Some((_, rest)) = text.rsplit_once("\\boxed ") {
        return rest.split('$').next();
    }
    let boxes = ["\\boxed{", "\\fbox{"];
    let (at, name) = boxes
        .iter()
        .find_map(|name| Some((text.rfind(name)?, name)))?;
    let inside = &text[at + name.len()..];
    let mut open = 1;
    let end = inside.find(|c| {
        open += i32::from(c == '{') - i32::from(c == '}');
        open == 0
    })?;
    Some(&inside[..end])
}

/// Steps 1 to 6.
pub fn normal_form(answer: &str) -> String {
    static WHOLE_WORDS: LazyLock<Regex> = LazyLock::new(|| {
        let words = WORDS.join("|");
        pattern(&format!(r"\b(?:{words})\b"))
    });
    let answer = answer.rsplit('=').next().unwrap_or(answer);
    let answer = outside_commands(answer, |text| {
        WHOLE_WORDS.replace_all(text, "").into_owned()
    });
    let replaced = REPLACED.iter();
    let answer = replaced.fold(answer, |answer, (from, to)| answer.replace(from, to));
    let answer = outside_commands(&answer, |text| {
        let words = WORDS.iter();
        words.fold(text.to_owned(), |text, word| text.replace(word, ""))
    });
    let answer = MARKS
        .iter()
        .fold(answer, |answer, mark| answer.replace(mark, ""));
    let answer = IN_DOLLARS.replace_all(&answer, "$$${3}$$");
    let answer = IN_TEXT.iter().fold(answer.into_owned(), |answer, text| {
        text.replace_all(&answer, "$1").into_owned()
    });
    let answer = IN_BOX.replace_all(&answer, "$1");
    let answer = BARE_FRACTION.replace_all(&answer, "frac{$1}{$2}");
    let answer = BARE_ROOT_WITH_INDEX.replace_all(&answer, "sqrt$1{$2}");
    let answer = BARE_ROOT.replace_all(&answer, "sqrt{$1}");
    let answer = answer.replace('$', "");
    if THOUSANDS.is_match(&answer) {
        answer.replace(',', "")
    } else {
        answer
    }
}

/// Rewrites what lies between the names of LaTeX commands.
fn outside_commands(text: &str, rewrite: impl Fn(&str) -> String) -> String {
    let mut out = String::new();
    let mut end = 0;
    for command in COMMAND.find_iter(text) {
        out += &rewrite(&text[end..command.start()]);
        out += command.as_str();
        end = command.end();
    }
    out + &rewrite(&text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_answer_have_one_normal_form() {
        for (answer, expected) in [
            ("x = 12", "12"),
            ("$12$", "12"),
            ("the value is $12$ exactly", "12"),
            ("12\\text{ cm}", "12"),
            ("12 cm", "12"),
            ("2\\pi cm", "2\\pi"),
            ("90^\\circ", "90"),
            ("\\frac12", "\\frac{1}{2}"),
            ("\\frac 1 2", "\\frac{1}{2}"),
            ("\\sqrt3", "\\sqrt{3}"),
            ("\\sqrt[3]8", "\\sqrt[3]{8}"),
            ("\\sqrt[3]{8}", "\\sqrt[3]{8}"),
            ("1,234,567", "1234567"),
            ("0,1", "0,1"),
            ("\\left( 3, 4 \\right)", "\\left(3,4\\right)"),
            ("\\boxed{7}", "7"),
            ("\\text{even}", "even"),
            ("\\textbf{a\\text{b}}", "ab"),
            ("an even number", "evennumber"),
        ] {
            assert_eq!(normal_form(answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_last_box_is_read_to_its_own_brace() {
        for (text, expected) in [
            (
                "\\boxed{1} and \\boxed{\\frac{1}{2}}.",
                Some("\\frac{1}{2}"),
            ),
            ("\\fbox{4}", Some("4")),
            ("$\\boxed 5$ and so on", Some("5")),
            ("\\boxed{1", None),
            ("no box", None),
        ] {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }
}
