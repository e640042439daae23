//! Columns for people: two spaces between, no lines, nothing after the last word of a row.

use crate::output::{Paint, Style};
use crate::text::clean;

/// Rows under a header. A cell has one line.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
pub struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    pub fn painted(text: impl AsRef<str>, paint: Paint) -> Self {
        let text = clean(text.as_ref());
        Self { text, paint }
    }
    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::painted(text, Paint::Plain)
    }
}

impl Table {
    pub fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }
    /// As many cells as the header has.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
    /// The header and the rows, a line each.
    pub fn render(&self, style: Style) -> String {
        let header: Vec<Cell> = self
            .header
            .iter()
            .map(|title| Cell::painted(title, Paint::Bold))
            .collect();
        let widths: Vec<usize> = (0..header.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells
                    .chain(header.get(column))
                    .map(Cell::width)
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            // Spaces that are written only if more text follows.
            let mut gap = 0;
            for (cell, width) in row.iter().zip(&widths) {
                if !cell.text.is_empty() {
                    out.extend(std::iter::repeat_n(' ', gap));
                    out.push_str(&style.paint(cell.paint, &cell.text));
                    gap = 0;
                }
                gap += width.saturating_sub(cell.width()) + 2;
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_with_their_last_word() {
        let mut table = Table::new(&["PEER", "ID", "STATE"]);
        table.row(["north".into(), "3".into(), "connected".into()]);
        table.row(["west".into(), "".into(), "stale".into()]);
        table.row(["x".into(), "12345".into(), "".into()]);
        let wanted =
            "PEER   ID     STATE\nnorth  3      connected\nwest          stale\nx      12345\n";
        assert_eq!(table.render(Style::PLAIN), wanted);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let mut table = Table::new(&["A", "B"]);
        table.row([Cell::painted("stale", Paint::Bad), "b".into()]);
        let plain = table.render(Style::PLAIN);
        assert_eq!(plain, "A      B\nstale  b\n");
        let coloured = table.render(Style::COLOUR);
        assert!(
            coloured.contains("\u{1b}[31mstale\u{1b}[0m  b"),
            "{coloured:?}"
        );
    }
}
