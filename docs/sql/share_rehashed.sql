-- share_rehashed: The hash of one share, computed again in SQL
-- question: Does this share's hash follow from what is on record about it?
-- param seg UInt64: its segment, as worker_shares or best_shares list it
-- param seq UInt64: its place by arrival in the segment
-- answer: Coinbase from the job's parts and the two extranonces, folded up the merkle branch (at most 16 levels, as many as a block can have), then the header of 80 bytes and its double
--   SHA-256. agree = 1 when its difficulty is the one that was logged. Explorers show hash as it stands here.
--   No row means that the share's session or job is unknown, as for a malformed submit.
SELECT
    seg,
    seq,
    lower(hex(root16)) AS merkle_root,
    lower(hex(header)) AS header_hex,
    lower(hex(reverse(hash_bytes))) AS hash,
    65535 * exp2(208) / (reinterpretAsUInt64(substring(hash_bytes, 25, 8)) * exp2(192) + reinterpretAsUInt64(substring(hash_bytes, 17, 8)) * exp2(128)) AS difficulty_computed,
    share_difficulty AS difficulty_logged,
    abs(difficulty_computed / share_difficulty - 1) < 0.000001 AS agree
FROM
(
    SELECT *, unhex(hex(SHA256(unhex(hex(SHA256(header)))))) AS hash_bytes
    FROM
    (
     SELECT seg, seq, share_difficulty, root16, concat(reverse(unhex(substring(concat('00000000', hex(version)), length(hex(version)) + 1, 8))), reverse(unhex(prev_hash_shown)), root16, reverse(unhex(substring(concat('00000000', hex(ntime)), length(hex(ntime)) + 1, 8))), reverse(unhex(substring(concat('00000000', hex(compact_target)), length(hex(compact_target)) + 1, 8))), reverse(unhex(substring(concat('00000000', hex(nonce)), length(hex(nonce)) + 1, 8)))) AS header
     FROM
     (
      SELECT *, if(length(branch_hex) > 960, unhex(hex(SHA256(unhex(hex(SHA256(concat(root15, unhex(substring(branch_hex, 961, 64))))))))), root15) AS root16
      FROM
      (
       SELECT *, if(length(branch_hex) > 896, unhex(hex(SHA256(unhex(hex(SHA256(concat(root14, unhex(substring(branch_hex, 897, 64))))))))), root14) AS root15
       FROM
       (
        SELECT *, if(length(branch_hex) > 832, unhex(hex(SHA256(unhex(hex(SHA256(concat(root13, unhex(substring(branch_hex, 833, 64))))))))), root13) AS root14
        FROM
        (
         SELECT *, if(length(branch_hex) > 768, unhex(hex(SHA256(unhex(hex(SHA256(concat(root12, unhex(substring(branch_hex, 769, 64))))))))), root12) AS root13
         FROM
         (
          SELECT *, if(length(branch_hex) > 704, unhex(hex(SHA256(unhex(hex(SHA256(concat(root11, unhex(substring(branch_hex, 705, 64))))))))), root11) AS root12
          FROM
          (
           SELECT *, if(length(branch_hex) > 640, unhex(hex(SHA256(unhex(hex(SHA256(concat(root10, unhex(substring(branch_hex, 641, 64))))))))), root10) AS root11
           FROM
           (
            SELECT *, if(length(branch_hex) > 576, unhex(hex(SHA256(unhex(hex(SHA256(concat(root9, unhex(substring(branch_hex, 577, 64))))))))), root9) AS root10
            FROM
            (
             SELECT *, if(length(branch_hex) > 512, unhex(hex(SHA256(unhex(hex(SHA256(concat(root8, unhex(substring(branch_hex, 513, 64))))))))), root8) AS root9
             FROM
             (
              SELECT *, if(length(branch_hex) > 448, unhex(hex(SHA256(unhex(hex(SHA256(concat(root7, unhex(substring(branch_hex, 449, 64))))))))), root7) AS root8
              FROM
              (
               SELECT *, if(length(branch_hex) > 384, unhex(hex(SHA256(unhex(hex(SHA256(concat(root6, unhex(substring(branch_hex, 385, 64))))))))), root6) AS root7
               FROM
               (
                SELECT *, if(length(branch_hex) > 320, unhex(hex(SHA256(unhex(hex(SHA256(concat(root5, unhex(substring(branch_hex, 321, 64))))))))), root5) AS root6
                FROM
                (
                 SELECT *, if(length(branch_hex) > 256, unhex(hex(SHA256(unhex(hex(SHA256(concat(root4, unhex(substring(branch_hex, 257, 64))))))))), root4) AS root5
                 FROM
                 (
                  SELECT *, if(length(branch_hex) > 192, unhex(hex(SHA256(unhex(hex(SHA256(concat(root3, unhex(substring(branch_hex, 193, 64))))))))), root3) AS root4
                  FROM
                  (
                   SELECT *, if(length(branch_hex) > 128, unhex(hex(SHA256(unhex(hex(SHA256(concat(root2, unhex(substring(branch_hex, 129, 64))))))))), root2) AS root3
                   FROM
                   (
                    SELECT *, if(length(branch_hex) > 64, unhex(hex(SHA256(unhex(hex(SHA256(concat(root1, unhex(substring(branch_hex, 65, 64))))))))), root1) AS root2
                    FROM
                    (
                     SELECT *, if(length(branch_hex) > 0, unhex(hex(SHA256(unhex(hex(SHA256(concat(root0, unhex(substring(branch_hex, 1, 64))))))))), root0) AS root1
                     FROM
                     (
                      SELECT *, unhex(hex(SHA256(unhex(hex(SHA256(concat(
                          unhex(prefix_hex),
                          unhex(substring(concat('00000000', hex(extranonce1_number)), length(hex(extranonce1_number)) + 1, 8)),
                          unhex(substring(concat('0000000000000000', hex(extranonce2)), length(hex(extranonce2)) + 17 - 2 * en2_bytes, 2 * en2_bytes)),
                          unhex(suffix_hex)))))))) AS root0
                      FROM
                      (
                          SELECT *
                          FROM
                          (
                              SELECT seg, seq, session, job, version, ntime, nonce, extranonce2, share_difficulty
                              FROM shares
                              WHERE seg = {seg:UInt64} AND seq = {seq:UInt64}
                          ) AS counted
                          ALL INNER JOIN
                          (
                              SELECT session, any(extranonce1) AS extranonce1_number, any(extranonce2_bytes) AS en2_bytes
                              FROM sessions
                              WHERE session IN (SELECT session FROM shares WHERE seg = {seg:UInt64} AND seq = {seq:UInt64})
                              GROUP BY session
                          ) AS known USING (session)
                      ) AS counted
                      ALL INNER JOIN
                      (
                          SELECT
                              job, any(coinbase_prefix) AS prefix_hex, any(coinbase_suffix) AS suffix_hex, any(branch) AS branch_hex, any(prev_hash) AS prev_hash_shown, any(nbits) AS compact_target
                          FROM jobs
                          WHERE job IN (SELECT job FROM shares WHERE seg = {seg:UInt64} AND seq = {seq:UInt64})
                          GROUP BY job
                      ) AS known USING (job)
                     )
                    )
                   )
                  )
                 )
                )
               )
              )
             )
            )
           )
          )
         )
        )
       )
      )
     )
    )
)
