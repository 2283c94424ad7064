-- Taken by a change that is merged separately.
SELECT 1;
