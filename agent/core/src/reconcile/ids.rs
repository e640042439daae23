use isthmus_abi::BackendRow;

/// Numbers below a table's capacity, each given once until it is freed.
#[derive(Debug)]
pub(super) struct Ids {
    /// Numbers from here on were never given.
    next: u32,
    free: Vec<u32>,
    capacity: u32,
}

impl Ids {
    /// Those that are taken already, found in a table; the gaps between them are free.
    pub(super) fn adopt(capacity: u32, taken: impl Fn(u32) -> bool) -> Self {
        let next = (0..capacity)
            .rev()
            .find(|&id| taken(id))
            .map_or(0, |last| last + 1);
        // Lowest first, as from a stack.
        let free = (0..next).rev().filter(|&id| !taken(id)).collect();
        Self {
            next,
            free,
            capacity,
        }
    }

    /// Freed numbers first, so that the tables' touched pages stay few.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        let id = self.next;
        (id < self.capacity).then(|| {
            self.next += 1;
            id
        })
    }

    pub(super) fn free(&mut self, id: u32) {
        debug_assert!(id < self.next, "{id} was given");
        self.free.push(id);
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Given and not freed.
    pub(super) fn taken(&self) -> u32 {
        // At most `next` numbers can be free.
        self.next - u32::try_from(self.free.len()).unwrap_or(self.next)
    }
}

/// Backend ids with the rows as they stand in the table, so that each id's generation goes on from life to life.
#[derive(Debug)]
pub(super) struct Backends {
    pub(super) ids: Ids,
    rows: Vec<BackendRow>,
}

impl Backends {
    pub(super) fn new(ids: Ids, rows: Vec<BackendRow>) -> Self {
        Self { ids, rows }
    }

    /// The zero row if the id never lived.
    pub(super) fn row(&self, id: u32) -> BackendRow {
        self.rows.get(id as usize).copied().unwrap_or_default()
    }

    pub(super) fn set_row(&mut self, id: u32, row: BackendRow) {
        let at = id as usize;
        if at >= self.rows.len() {
            self.rows.resize(at + 1, BackendRow::default());
        }
        self.rows[at] = row;
    }
}
