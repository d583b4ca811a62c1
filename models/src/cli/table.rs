//! A table of words, for a terminal, in Markdown and in HTML.

use std::fmt::Write;

use super::report::printable;

/// A heading and rows of as many cells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// What stands above each column.
    pub(crate) heading: Vec<String>,
    /// The rows.
    pub(crate) rows: Vec<Vec<String>>,
    /// Columns of words, from the left; the others hold numbers, which line up on the right.
    pub(crate) words: usize,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(heading: &[&str], words: usize) -> Self {
        Self {
            heading: heading.iter().map(|&cell| cell.to_owned()).collect(),
            rows: Vec::new(),
            words,
        }
    }

    /// Columns as wide as they have to be, two spaces between them.
    pub(crate) fn text(&self) -> String {
        let lines: Vec<Vec<String>> = std::iter::once(&self.heading)
            .chain(&self.rows)
            .map(|row| row.iter().map(|cell| on_one_line(cell)).collect())
            .collect();
        let widths: Vec<_> = (0..self.heading.len())
            .map(|column| {
                let cells = lines.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for row in &lines {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, &width))| {
                if column < self.words {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            out += cells.collect::<Vec<_>>().join("  ").trim_end();
            out.push('\n');
        }
        out
    }

    /// A Markdown table.
    pub(crate) fn markdown(&self) -> String {
        let line = |row: &[String]| {
            let cells = row.iter().map(|cell| on_one_line(cell).replace('|', "\\|"));
            format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
        };
        let mut out = line(&self.heading);
        for column in 0..self.heading.len() {
            out += if column < self.words { "|---" } else { "|---:" };
        }
        out += "|\n";
        out.extend(self.rows.iter().map(|row| line(row)));
        out
    }

    /// An HTML table.
    pub(crate) fn html(&self) -> String {
        let mut out = String::from("<div class=\"wide\"><table>\n<thead><tr>");
        let cell = |tag: &str, column: usize, text: &str, out: &mut String| {
            let class = if column < self.words {
                ""
            } else {
                " class=\"n\""
            };
            let _ = write!(out, "<{tag}{class}>{}</{tag}>", escaped(text));
        };
        for (column, text) in self.heading.iter().enumerate() {
            cell("th", column, text, &mut out);
        }
        out += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            out += "<tr>";
            for (column, text) in row.iter().enumerate() {
                cell("td", column, text, &mut out);
            }
            out += "</tr>\n";
        }
        out += "</tbody></table></div>\n";
        out
    }
}

/// A text from a file on one line, without the terminal's commands.
fn on_one_line(text: &str) -> String {
    printable(text.as_bytes()).replace(['\n', '\t'], " ")
}

/// A text as HTML shows it, in elements and in quoted attributes.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["arm", "loss"], 1);
        table
            .rows
            .push(vec!["a|b<i>".to_owned(), "1.25".to_owned()]);
        table
            .rows
            .push(vec!["c\n\x1b[31m".to_owned(), "10.5".to_owned()]);
        table
    }

    #[test]
    fn numbers_line_up_on_the_right_and_nothing_commands_the_terminal() {
        assert_eq!(
            table().text(),
            "arm      loss\na|b<i>   1.25\nc \u{fffd}[31m  10.5\n"
        );
    }

    #[test]
    fn markup_in_a_cell_stays_text() {
        assert!(
            table()
                .markdown()
                .starts_with("| arm | loss |\n|---|---:|\n| a\\|b<i> | 1.25 |")
        );
        let html = table().html();
        assert!(
            html.contains("<td>a|b&lt;i&gt;</td><td class=\"n\">1.25</td>"),
            "{html}"
        );
        assert_eq!(
            escaped("<a href='x' \"&\x07"),
            "&lt;a href=&#39;x&#39; &quot;&amp;\u{fffd}"
        );
    }
}
