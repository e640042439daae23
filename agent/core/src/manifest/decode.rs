//! Reading fields out of a [`Node`] with words for what is wrong.

use super::document::{Node, Value};

/// What is wrong with a field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) line: u32,
    /// `spec.ports[0].port`
    pub(super) field: String,
    pub(super) message: String,
}

/// A node, and how we came to it. The path is spelled out only when somebody asks for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    node: &'a Node<'a>,
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    pub(super) fn root(node: &'a Node<'a>) -> Self {
        Self {
            node,
            parent: None,
            step: Step::Root,
        }
    }

    pub(super) fn line(&self) -> u32 {
        self.node.line
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// `spec.ports[0].port`; keys that hold dots stand in brackets too.
    pub(super) fn path(&self) -> String {
        let mut path = self.parent.map(Self::path).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Index(index) => path.push_str(&format!("[{index}]")),
            Step::Key(key) if key.contains(['.', '/']) => path.push_str(&format!("[{key}]")),
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
        }
        path
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault {
            line: self.line(),
            field: self.path(),
            message: message.into(),
        }
    }

    /// The field, unless it is missing or null: an API server knows no difference.
    pub(super) fn get<'b>(&'b self, key: &'b str) -> Result<Option<At<'b>>, Fault>
    where
        'a: 'b,
    {
        let Value::Map(map) = &self.node.value else {
            return Err(self.fault(self.expected("a mapping")));
        };
        Ok(map
            .iter()
            .find(|(name, node)| name == key && !matches!(node.value, Value::Null))
            .map(|(_, node)| At {
                node,
                parent: Some(self),
                step: Step::Key(key),
            }))
    }

    pub(super) fn required<'b>(&'b self, key: &'b str) -> Result<At<'b>, Fault>
    where
        'a: 'b,
    {
        self.get(key)?.ok_or_else(|| {
            let mut fault = self.fault("is missing");
            if !fault.field.is_empty() {
                fault.field.push('.');
            }
            fault.field.push_str(key);
            fault
        })
    }

    pub(super) fn list<'b>(&'b self) -> Result<impl ExactSizeIterator<Item = At<'b>>, Fault>
    where
        'a: 'b,
    {
        let Value::List(list) = &self.node.value else {
            return Err(self.fault(self.expected("a list")));
        };
        Ok(list.iter().enumerate().map(move |(index, node)| At {
            node,
            parent: Some(self),
            step: Step::Index(index),
        }))
    }

    pub(super) fn entries<'b>(&'b self) -> Result<impl Iterator<Item = (&'b str, At<'b>)>, Fault>
    where
        'a: 'b,
    {
        let Value::Map(map) = &self.node.value else {
            return Err(self.fault(self.expected("a mapping")));
        };
        Ok(map.iter().map(move |(key, node)| {
            (
                &**key,
                At {
                    node,
                    parent: Some(self),
                    step: Step::Key(key),
                },
            )
        }))
    }

    pub(super) fn text<'b>(&'b self) -> Result<&'b str, Fault>
    where
        'a: 'b,
    {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.fault(self.expected("text; put it in quotes"))),
        }
    }

    /// Text of at most so many bytes: an API server's limit for the field.
    pub(super) fn text_within<'b>(&'b self, most: usize) -> Result<&'b str, Fault>
    where
        'a: 'b,
    {
        let text = self.text()?;
        if text.len() > most {
            return Err(self.fault(self.expected(&format!("{most} bytes or fewer"))));
        }
        Ok(text)
    }

    pub(super) fn boolean(&self) -> Result<bool, Fault> {
        match self.node.value {
            Value::Bool(value) => Ok(value),
            _ => Err(self.fault(self.expected("true or false"))),
        }
    }

    /// 1..65535.
    pub(super) fn port(&self) -> Result<u16, Fault> {
        match self.node.value {
            Value::Integer(number) => u16::try_from(number).ok().filter(|&port| port != 0),
            _ => None,
        }
        .ok_or_else(|| self.fault(self.expected("1..65535")))
    }

    /// A whole number of `range`.
    pub(super) fn number(&self, range: std::ops::RangeInclusive<u32>) -> Result<u32, Fault> {
        match self.node.value {
            Value::Integer(number) => u32::try_from(number).ok().filter(|n| range.contains(n)),
            _ => None,
        }
        .ok_or_else(|| self.fault(self.expected(&format!("{}..{}", range.start(), range.end()))))
    }

    pub(super) fn is_integer(&self) -> bool {
        matches!(self.node.value, Value::Integer(_))
    }

    /// The text of `key`, if it is there.
    pub(super) fn text_of<'b>(&'b self, key: &'b str) -> Result<Option<String>, Fault>
    where
        'a: 'b,
    {
        self.get(key)?
            .map(|at| at.text().map(str::to_owned))
            .transpose()
    }

    /// `80800 is not 1..65535`
    fn expected(&self, what: &str) -> String {
        let shown = match &self.node.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Text(text) => quoted(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        };
        format!("{shown} is not {what}")
    }
}

/// The text in quotes, and short enough for a line of a terminal.
pub(super) fn quoted(text: &str) -> String {
    const MOST: usize = 64;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
