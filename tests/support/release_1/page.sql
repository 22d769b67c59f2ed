SELECT answered.order_id, answered.version, CAST(row_to_json(answered) AS TEXT) AS row_to_json_1
FROM (SELECT anon_1.order_id AS order_id, anon_1.tenant_id AS tenant_id, anon_1.created_by AS created_by, anon_1.status AS status, anon_1.version AS version, anon_1.customer_name AS customer_name, anon_1.customer_email AS customer_email, anon_1.customer_phone AS customer_phone, anon_1.shipping_address AS shipping_address, anon_1.billing_address AS billing_address, anon_1.total_amount AS total_amount, anon_1.currency AS currency, array_to_json(array((SELECT row_to_json(item) AS row_to_json_2
FROM (SELECT order_items.line_no AS line_no, order_items.product_name AS product_name, order_items.product_sku AS product_sku, order_items.quantity AS quantity, order_items.unit_price AS unit_price
FROM order_items
WHERE order_items.tenant_id = %(tenant_id)s AND order_items.order_id = anon_1.order_id ORDER BY order_items.line_no) AS item))) AS items, to_char(timezone('UTC', anon_1.created_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at, to_char(timezone('UTC', anon_1.updated_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated_at
FROM (SELECT orders.tenant_id AS tenant_id, orders.order_id AS order_id, orders.created_by AS created_by, orders.status AS status, orders.version AS version, orders.customer_name AS customer_name, orders.customer_email AS customer_email, orders.customer_phone AS customer_phone, orders.shipping_address AS shipping_address, orders.billing_address AS billing_address, orders.total_amount AS total_amount, orders.currency AS currency, orders.created_at AS created_at, orders.updated_at AS updated_at
FROM orders
WHERE orders.tenant_id = %(tenant_id)s ORDER BY orders.order_id DESC
 LIMIT 101) AS anon_1 ORDER BY anon_1.order_id DESC
 LIMIT %(limit)s) AS answered ORDER BY answered.order_id DESC
