package inetd

// queue is a first-in first-out list. The zero value is empty.
type queue[T any] struct {
	items []T
	head  int // index of the first one
}

func (q *queue[T]) len() int { return len(q.items) - q.head }

// all returns the items, oldest first; they stay the queue's.
func (q *queue[T]) all() []T { return q.items[q.head:] }

func (q *queue[T]) push(item T) {
	if len(q.items) == cap(q.items) && q.head > len(q.items)/2 {
		// Most of it has left: close up rather than grow.
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, item)
}

func (q *queue[T]) pushFront(item T) {
	if q.head == 0 {
		q.items = append([]T{item}, q.items...)
		return
	}
	q.head--
	q.items[q.head] = item
}

// first returns the oldest item without taking it.
func (q *queue[T]) first() (item T, ok bool) {
	if q.len() == 0 {
		return item, false
	}
	return q.items[q.head], true
}

func (q *queue[T]) pop() (item T, ok bool) {
	if q.len() == 0 {
		return item, false
	}
	var none T
	item, q.items[q.head] = q.items[q.head], none
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return item, true
}
