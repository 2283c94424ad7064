-- A fill whose seller had bought the hours itself: no capacity and no bond of its own stand behind it.
ALTER TABLE fill ADD COLUMN resold boolean NOT NULL DEFAULT false;
